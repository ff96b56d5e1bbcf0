"""Valid and invalid environment variables, and the errors of invalid ones."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT
from worker.contract.errors import SettingsError
from worker.contract.models import ModelSpec
from worker.contract.settings import Settings

#: Each variable with a non-default value, the field that it sets, and the field's value.
VARIABLES: list[tuple[str, str, str, Any]] = [
    ("EMBEDQ_MODEL", "some/model", "models", (ModelSpec("some/model", "some/model"),)),
    ("EMBEDQ_DEVICE", "cuda:1", "device", "cuda:1"),
    ("EMBEDQ_BACKEND", "torch", "backend", "torch"),
    ("EMBEDQ_DTYPE", "bfloat16", "dtype", "bfloat16"),
    ("EMBEDQ_BATCH_TOKENS", "4096", "batch_tokens", 4096),
    ("EMBEDQ_MIN_COSINE", "0.95", "min_cosine", 0.95),
    ("EMBEDQ_GPU_MEMORY_SHARE", "0.5", "gpu_memory_share", 0.5),
    ("EMBEDQ_TUNED", "/etc/tuned.json", "tuned", Path("/etc/tuned.json")),
    ("EMBEDQ_CACHE_DIR", "/var/cache/embedq", "cache_dir", Path("/var/cache/embedq")),
    ("EMBEDQ_CACHE_MB", "64", "cache_bytes", 64 * 2**20),
    ("EMBEDQ_THREADS", "3", "threads", 3),
    ("CELERY_BROKER_URL", "redis://broker:1/2", "broker_url", "redis://broker:1/2"),
    ("CELERY_RESULT_BACKEND", "redis://results:1/2", "result_backend", "redis://results:1/2"),
    ("EMBEDQ_SENTINEL_MASTER", "main", "sentinel_master", "main"),
    ("EMBEDQ_QUEUE", "texts.fast", "queue", "texts.fast"),
    ("EMBEDQ_MAX_QUEUED_TOKENS", "5", "max_queued_tokens", 5),
    ("EMBEDQ_ACCEPT_WITHOUT_WORKERS", "True", "accept_without_workers", True),
    ("EMBEDQ_MAX_JOB_BYTES", "1 MiB", "max_job_bytes", 2**20),
    ("EMBEDQ_MAX_RESULT_MB", "3", "max_result_bytes", 3 * 2**20),
    ("EMBEDQ_MAX_QUEUED_MB", "3", "max_queued_bytes", 3 * 2**20),
    ("EMBEDQ_RESULT_TTL", "60", "result_ttl", 60),
    ("EMBEDQ_API_KEYS_FILE", "/etc/keys", "api_keys_file", Path("/etc/keys")),
    ("EMBEDQ_TRUSTED_HOSTS", "A.b., [::1]", "trusted_hosts", ("a.b", "::1")),
    ("EMBEDQ_TOKEN_TABLE", "/etc/cl100k.tiktoken", "token_table", Path("/etc/cl100k.tiktoken")),
    ("EMBEDQ_FILES", "s3://bucket/embedq", "files", "s3://bucket/embedq"),
    ("EMBEDQ_MAX_FILES_MB", "3", "max_files_bytes", 3 * 2**20),
    ("EMBEDQ_LEASE_SECONDS", "30", "lease_seconds", 30),
    ("EMBEDQ_MAX_ATTEMPTS", "1", "max_attempts", 1),
    ("EMBEDQ_FORWARD_SECONDS", "9", "forward_seconds", 9),
    ("EMBEDQ_SHUTDOWN_SECONDS", "9", "shutdown_seconds", 9),
    ("EMBEDQ_TASK_THREADS", "9", "task_threads", 9),
    ("EMBEDQ_LOG_FORMAT", "json", "log_format", "json"),
]


def test_an_empty_environment_means_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


@pytest.mark.parametrize(("name", "value", "field", "expected"), VARIABLES)
def test_each_variable_sets_its_field_and_no_other(
    name: str, value: str, field: str, expected: Any
) -> None:
    found = Settings.from_env({name: value})
    others = {} if name != "CELERY_BROKER_URL" else {"result_backend": expected}
    assert found == dataclasses.replace(Settings(), **{field: expected}, **others)
    assert found != Settings()


@pytest.mark.parametrize("name", [name for name, *_ in VARIABLES])
def test_an_empty_variable_counts_as_unset_and_blanks_around_a_value_do_not_count(
    name: str,
) -> None:
    assert Settings.from_env({name: ""}) == Settings.from_env({name: "  "}) == Settings()
    value = next(value for known, value, *_ in VARIABLES if known == name)
    assert Settings.from_env({name: f" {value} "}) == Settings.from_env({name: value})


def test_every_field_and_its_variable_are_covered_here() -> None:
    assert {field for _, _, field, _ in VARIABLES} == {
        field.name for field in dataclasses.fields(Settings)
    }
    assert {field.metadata["variable"].name for field in dataclasses.fields(Settings)} == {
        name for name, *_ in VARIABLES
    }


def documented() -> list[str]:
    """The lines of docs/settings.md: of each setting its variable, default and meaning."""
    comments = dict[str, str]()
    for lines, name in re.findall(
        r"((?:^    #: .*\n)+)    (\w+): ", inspect.getsource(Settings), re.MULTILINE
    ):
        comments[name] = " ".join(line.strip().removeprefix("#: ") for line in lines.splitlines())
    return [_line(field, comments[field.name]) for field in dataclasses.fields(Settings)]


def _line(field: dataclasses.Field[Any], comment: str) -> str:
    found = re.fullmatch(r"(?P<meaning>.*?)(?: \(default: (?P<default>.*)\))?", comment)
    assert found
    default = found["default"] or f"`{field.default}`"
    return f"| `{field.metadata['variable'].name}` | {default} | {found['meaning']} |"


def test_the_page_has_every_setting_with_its_default_and_meaning() -> None:
    table = "\n".join(documented())
    assert table in (ROOT / "docs" / "settings.md").read_text(), f"put these lines there:\n{table}"


def test_results_go_where_the_broker_is_unless_told_otherwise() -> None:
    found = Settings.from_env({"CELERY_BROKER_URL": "redis://here/1"})
    assert found.result_backend == "redis://here/1"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("EMBEDQ_DEVICE", "gpu", "auto, cpu, cuda, cuda:N, mps"),
        ("EMBEDQ_DEVICE", "cuda:", "cuda:N"),
        ("EMBEDQ_DEVICE", "CPU", "cpu"),
        ("EMBEDQ_BACKEND", "onnx", "auto, torch"),
        ("EMBEDQ_DTYPE", "float64", "float32"),
        ("EMBEDQ_QUEUE", "two words", "letters"),
        ("EMBEDQ_QUEUE", "q" * 129, "letters"),
        ("EMBEDQ_BATCH_TOKENS", "0", "from 1 to 2,147,483,647"),
        ("EMBEDQ_BATCH_TOKENS", "many", "from 1 to"),
        ("EMBEDQ_BATCH_TOKENS", "1.5", "from 1 to"),
        ("EMBEDQ_BATCH_TOKENS", "1_000", "from 1 to"),
        ("EMBEDQ_THREADS", "-1", "from 1 to"),
        ("EMBEDQ_RESULT_TTL", "0", "from 1 to"),
        ("EMBEDQ_RESULT_TTL", "9" * 10, "from 1 to"),
        ("EMBEDQ_RESULT_TTL", "9" * 5000, "from 1 to"),
        ("EMBEDQ_LEASE_SECONDS", "2", "from 3 to"),
        ("EMBEDQ_MAX_RESULT_MB", "0", "from 1 to"),
        ("EMBEDQ_MAX_FILES_MB", "0", "from 1 to"),
        ("EMBEDQ_MAX_QUEUED_TOKENS", "-5", "from 1 to"),
        ("EMBEDQ_MAX_ATTEMPTS", "0", "from 1 to"),
        ("EMBEDQ_FORWARD_SECONDS", "0", "from 1 to"),
        ("EMBEDQ_SHUTDOWN_SECONDS", "soon", "from 1 to"),
        ("EMBEDQ_TASK_THREADS", "0", "from 1 to"),
        ("EMBEDQ_MAX_JOB_BYTES", "0", "8 MiB"),
        ("EMBEDQ_MAX_JOB_BYTES", "8 MB", "8 MiB"),
        ("EMBEDQ_MAX_JOB_BYTES", "-1", "8 MiB"),
        ("EMBEDQ_MAX_JOB_BYTES", "lots", "8 MiB"),
        ("EMBEDQ_FILES", "some/folder", "absolute"),
        ("EMBEDQ_TRUSTED_HOSTS", "a.example:80", "without ports"),
        ("EMBEDQ_TRUSTED_HOSTS", "a b", "host names"),
        ("EMBEDQ_TRUSTED_HOSTS", "*.example", "'.example.com' for"),
        ("EMBEDQ_MODEL", "name=", "name=path"),
        ("EMBEDQ_MODEL", "=path", "name=path"),
        ("EMBEDQ_MODEL", "a,,b", "name=path"),
        ("EMBEDQ_MODEL", "a=x,a=y", "twice"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: value})
    assert caught.value.code == "invalid_setting"
    assert caught.value.message.startswith(f"{name}={value!r} ")
    assert allowed in caught.value.message


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("1", 1),
        ("8388608", 2**23),
        ("5b", 5),
        ("8 MiB", 2**23),
        ("8mib", 2**23),
        ("2KiB", 2**11),
        ("1 GiB", 2**30),
    ],
)
def test_sizes_are_bytes_or_have_a_unit(value: str, size: int) -> None:
    assert Settings.from_env({"EMBEDQ_MAX_JOB_BYTES": value}).max_job_bytes == size


def test_several_models_are_served_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    found = Settings.from_env({"EMBEDQ_MODEL": f"small=/models/a, {folder} ,hub/id,x={folder}"})
    assert found.models == (
        ModelSpec("small", "/models/a"),
        ModelSpec("my-model", str(folder)),
        ModelSpec("hub/id", "hub/id"),
        ModelSpec("x", str(folder)),
    )


def test_the_packaged_model_has_a_name_and_no_source() -> None:
    assert Settings.from_env({}).models == (ModelSpec("all-MiniLM-L6-v2"),)


def test_a_relative_path_is_served_under_its_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Settings.from_env({"EMBEDQ_MODEL": "."}).models == (ModelSpec("here", "."),)


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().device = "cpu"  # type: ignore[misc]
