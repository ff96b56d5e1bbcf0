"""The processes of `embedq up`, without starting them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.processes import ROOT
from worker.contract.hosts import TrustedHosts
from worker.contract.settings import Settings
from worker.local import gpus, valkey
from worker.local.deployment import (
    AddressUnusable,
    Options,
    PackageShadowed,
    api_processes,
    check_current_folder,
    check_open,
    environment,
    listen,
    server,
    workers,
)
from worker.tuned import cores


def options(**changes: object) -> Options:
    values = {
        "host": "127.0.0.1",
        "port": 8000,
        "data_dir": Path("data"),
        "model": None,
        "device": None,
        "workers": 1,
    }
    return Options(**values | changes)  # type: ignore[arg-type]


def test_the_embedded_valkey_is_broker_and_result_backend() -> None:
    env = environment(options(), {}, Path("/data/valkey.sock"))
    settings = Settings.from_env(env)
    assert settings.broker_url == "redis+socket:///data/valkey.sock?virtual_host=0"
    assert settings.result_backend == settings.broker_url
    assert settings.files == str(Path("data/files").resolve())


def test_a_broker_of_the_users_own_is_left_alone() -> None:
    env = environment(options(), {"CELERY_BROKER_URL": "redis://host/3"}, None)
    assert env == {"CELERY_BROKER_URL": "redis://host/3"}


def test_options_go_before_variables() -> None:
    given = {"EMBEDQ_MODEL": "from-env", "EMBEDQ_DEVICE": "cuda"}
    env = environment(options(model="from-option"), given, None)
    assert env == {"EMBEDQ_MODEL": "from-option", "EMBEDQ_DEVICE": "cuda"}


def test_workers_share_the_cores_unless_told_otherwise() -> None:
    assert environment(options(workers=2), {}, None) == {
        "EMBEDQ_THREADS": str(max(1, cores() // 2))
    }
    told = {"EMBEDQ_THREADS": "7"}
    assert environment(options(workers=2), told, None) == told
    assert "EMBEDQ_THREADS" not in environment(options(workers=1), {}, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::", "0.0.0.0", "192.168.1.7"])
def test_loopback_names_and_addresses_need_no_entry_of_their_own(host: str) -> None:
    assert environment(options(host=host), {}, None) == {}


@pytest.mark.parametrize(
    ("host", "given", "trusted"),
    [
        ("box.lan", {}, ["box.lan", "localhost", "192.168.1.7", "::1"]),
        ("Box.lan", {"EMBEDQ_TRUSTED_HOSTS": "embed.example"}, ["box.lan", "embed.example"]),
        ("127.0.0.1", {"EMBEDQ_TRUSTED_HOSTS": "embed.example"}, ["127.0.0.1", "embed.example"]),
        ("0.0.0.0", {"EMBEDQ_TRUSTED_HOSTS": "embed.example"}, ["127.0.0.1", "embed.example"]),
        ("box.lan", {"EMBEDQ_API_KEYS_FILE": "/k"}, []),
    ],
)
def test_the_api_can_be_called_by_the_host_it_listens_on(
    host: str, given: dict[str, str], trusted: list[str]
) -> None:
    hosts = Settings.from_env(environment(options(host=host), given, None)).trusted_hosts
    assert bool(hosts) == bool(trusted)
    assert all(name in TrustedHosts(hosts) for name in trusted)
    assert "attacker.example" not in TrustedHosts(hosts)


def test_each_worker_has_a_name_of_its_own() -> None:
    programs = workers(options(workers=3), Settings(), {})
    nodes = {program.command[list(program.command).index("-n") + 1] for program in programs}
    assert len(nodes) == len({program.name for program in programs}) == 3


def test_workers_take_the_gpus_in_turn() -> None:
    programs = workers(options(workers=3, gpus=2), Settings(), {"EMBEDQ_DEVICE": "auto"})
    devices = [program.env["EMBEDQ_DEVICE"] for program in programs if program.env]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize("count", [0, 1])
def test_workers_choose_the_device_where_there_is_one(count: int) -> None:
    [program] = workers(options(gpus=count), Settings(), {"EMBEDQ_DEVICE": "auto"})
    assert program.env == {"EMBEDQ_DEVICE": "auto"}


@pytest.mark.parametrize(
    ("device", "count"), [("auto", 2), ("cuda", 2), ("cpu", 0), ("mps", 0), ("cuda:1", 0)]
)
def test_gpus_are_counted_as_torch_sees_them(
    device: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus, "_SIGNS", (tmp_path,))
    monkeypatch.setattr(gpus, "_QUESTION", "print('cuda:0', 'cuda:1', 'cpu')")
    assert gpus.count(device) == count


def test_a_driver_that_hangs_counts_as_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus, "_SIGNS", (tmp_path,))
    monkeypatch.setattr(gpus, "_QUESTION", "import threading; threading.Event().wait()")
    monkeypatch.setattr(gpus, "_LONGEST_S", 0.2)
    assert gpus.count("auto") == 0


@pytest.mark.slow
def test_a_machine_without_gpus_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_SIGNS", (Path("/dev/null"),))
    assert gpus.count("auto") == 0


@pytest.mark.parametrize(("count", "processes"), [(1, 1), (2, 1), (8, 2), (64, 4)])
def test_the_api_takes_few_processes(count: int, processes: int) -> None:
    assert api_processes(count) == processes


def test_a_port_in_use_is_refused_with_its_number() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            AddressUnusable, match=rf"127\.0\.0\.1 port {port}: Address already in use"
        ):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressUnusable, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_open(host, keys=False, without_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_other_addresses_are_open_only_in_so_many_words(host: str) -> None:
    with pytest.raises(AddressUnusable, match="--without-keys"):
        check_open(host, keys=False, without_keys=False)
    check_open(host, keys=False, without_keys=True)
    check_open(host, keys=True, without_keys=False)


def test_a_strangers_module_in_the_current_folder_is_found(tmp_path: Path) -> None:
    check_current_folder(tmp_path, ROOT)
    check_current_folder(ROOT, ROOT)
    (tmp_path / "worker.py").touch()
    with pytest.raises(PackageShadowed, match=r"worker\.py"):
        check_current_folder(tmp_path, ROOT)


def test_a_deep_data_directory_has_its_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    path = valkey.socket_path(deep)
    assert len(bytes(path)) <= valkey.MAX_SOCKET_PATH
    assert path == valkey.socket_path(deep) != valkey.socket_path(deep / "other")
    assert path.parent.stat().st_mode & 0o077 == 0


def test_the_embedded_valkey_has_a_bound_on_its_memory(tmp_path: Path) -> None:
    program = server(tmp_path, tmp_path / "s", 0)
    settings = dict(zip(program.command[1::2], program.command[2::2], strict=True))
    bound = int(settings["--maxmemory"])
    assert bound == valkey.memory_share()
    assert 128 * 2**20 <= bound <= psutil.virtual_memory().total // 4 + 2**20


def test_a_containers_limit_is_the_machines_memory(tmp_path: Path) -> None:
    limit, none = tmp_path / "memory.max", tmp_path / "other"
    limit.write_text("1073741824\n")
    none.write_text("max\n")
    assert valkey.machine_memory([tmp_path / "missing", none, limit]) == 2**30
    assert valkey.machine_memory([none]) > 0


def test_valkey_listens_on_its_socket_alone_and_forgets_nothing() -> None:
    command = valkey.command(Path("data"), Path("s.sock"))
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    assert settings["--port"] == "0"
    assert settings["--appendonly"] == "yes"
    assert settings["--maxmemory-policy"] == "noeviction"
