"""The programs of one machine: their command lines, environment and order of starts."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from worker.contract.errors import EmbedqError
from worker.contract.hosts import LOCAL_HOSTS, TrustedHosts, parse_hosts
from worker.contract.settings import Settings
from worker.local import valkey
from worker.local.supervisor import Program
from worker.tuned import cores

#: Seconds that open requests have after the API receives the stop signal.
API_GRACE_S = 5
#: Seconds that Valkey has to write out its append-only file.
VALKEY_STOP_S = 10
#: Connections that may wait while the API starts.
BACKLOG = 2048


class AddressUnusable(EmbedqError):
    """A server cannot listen on the requested address."""

    code = "address_unusable"


class PackageShadowed(EmbedqError):
    """The current folder holds a module that would be loaded in place of embedq's."""

    code = "package_shadowed"


@dataclass(frozen=True)
class Options:
    """Options of `embedq up`."""

    host: str
    port: int
    data_dir: Path
    model: str | None
    device: str | None
    workers: int
    without_keys: bool = False
    #: GPUs that the workers are spread over; 0 or 1: they share a device.
    gpus: int = 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, handed to the API on each of its starts.

    Bound here, so that a used port is detected before the programs start, and so that connections
    wait while the API restarts. Raises `AddressUnusable`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        listener.close()
        reason = getattr(exc, "strerror", None) or str(exc)
        raise AddressUnusable(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host or --port"
        ) from exc
    return listener


def environment(
    options: Options, environ: Mapping[str, str], own_valkey: Path | None
) -> dict[str, str]:
    """The children's environment: this process's, the options, the embedded Valkey at a socket."""
    env = dict(environ)
    if options.model is not None:
        env["EMBEDQ_MODEL"] = options.model
    if options.device is not None:
        env["EMBEDQ_DEVICE"] = options.device
    if own_valkey is not None:
        env["CELERY_BROKER_URL"] = valkey.celery_url(own_valkey)
        if not env.get("CELERY_RESULT_BACKEND"):
            env["CELERY_RESULT_BACKEND"] = env["CELERY_BROKER_URL"]
        if not env.get("EMBEDQ_FILES"):
            env["EMBEDQ_FILES"] = str(options.data_dir.expanduser().resolve() / "files")
    if not env.get("EMBEDQ_API_KEYS_FILE") or env.get("EMBEDQ_TRUSTED_HOSTS"):
        env |= _trust(reachable(options)[0], env.get("EMBEDQ_TRUSTED_HOSTS", ""))
    if options.workers > 1 and not env.get("EMBEDQ_THREADS"):
        # Otherwise each worker would use every core in each forward pass.
        env["EMBEDQ_THREADS"] = str(max(1, cores() // options.workers))
    return env


def reachable(options: Options) -> tuple[str, int]:
    """Host and port at which this machine reaches the API: loopback for a wildcard address."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 — compared, not bound
    return wildcard.get(options.host, options.host), options.port


def server(folder: Path, socket_file: Path, lock_fd: int) -> Program:
    """The embedded Valkey, which shares the lock of its folder."""
    log = folder / "valkey.log"
    command = valkey.command(folder, socket_file, log=log, max_memory=valkey.memory_share())
    return Program("valkey", command, stop_s=VALKEY_STOP_S, keep_fds=(lock_fd,), log=log)


def workers(options: Options, settings: Settings, env: dict[str, str]) -> list[Program]:
    """`celery -A worker worker`, as often as asked, each with its own name and GPU."""
    return [
        Program(
            f"worker {number}",
            [
                *(sys.executable, "-m", "celery", "--quiet", "-A", "worker", "worker"),
                # The port distinguishes two deployments of one machine on the same broker.
                *("-n", f"worker{number}-{options.port}@%h", "-l", "warning"),
            ],
            stop_s=settings.shutdown_seconds + 5,
            env=env | _gpu(number, options.gpus),
        )
        for number in range(1, options.workers + 1)
    ]


def _gpu(number: int, gpus: int) -> dict[str, str]:
    """The setting that gives the worker of this number, from 1, a GPU in turn."""
    return {"EMBEDQ_DEVICE": f"cuda:{(number - 1) % gpus}"} if gpus > 1 else {}


def api(listener: socket.socket, env: Mapping[str, str], counts: Path) -> Program:
    """The API under gunicorn: greenlets, so that waiting clients cost little.

    Its processes add up their metrics in files in the folder `counts`.
    """
    processes = api_processes(cores())
    if processes > 1:
        env = {"PROMETHEUS_MULTIPROC_DIR": str(counts), **env}
    return Program(
        "api",
        [
            *(sys.executable, "-m", "gunicorn", "-c", "python:api.serving"),
            *("-b", f"fd://{listener.fileno()}", "-w", str(processes)),
            *("--graceful-timeout", str(API_GRACE_S), "--log-level", "warning"),
            "api:create_app()",
        ],
        stop_s=API_GRACE_S + 3,
        env=env,
        keep_fds=(listener.fileno(),),
    )


def api_processes(core_count: int) -> int:
    """Processes of the API: one to four cores' worth, the rest is for the model."""
    return max(1, min(4, core_count // 4))


def check_open(host: str, *, keys: bool, without_keys: bool) -> None:
    """Raise `AddressUnusable` if other machines could reach an API that checks no keys.

    `keys`: a key file is set; `without_keys`: the user has asked for an API without keys.
    """
    if not (keys or without_keys or _is_loopback(host)):
        raise AddressUnusable(
            f"without EMBEDQ_API_KEYS_FILE the API checks no keys, and {host} is open to other "
            "machines: make keys with `embedq keys add`, add --without-keys if whoever reaches it "
            "may use it, or use --host 127.0.0.1"
        )


def check_current_folder(folder: Path, ours: Path) -> None:
    """Raise `PackageShadowed` if Python would load a foreign `worker` or `api` from here.

    Celery and gunicorn search the current folder first; `ours` is the folder of embedq's own
    packages.
    """
    for name in ("worker", "api"):
        spec = PathFinder.find_spec(name, [str(folder)])
        if spec and spec.origin and ours not in Path(spec.origin).resolve().parents:
            raise PackageShadowed(
                f"{spec.origin} would be loaded in place of embedq's own {name!r}: "
                "run embedq from another folder"
            )


def _trust(host: str, given: str) -> dict[str, str]:
    """The setting that makes the API trust its own address, if necessary."""
    entries = tuple(filter(None, given.split(","))) or LOCAL_HOSTS
    try:
        trusted = host.lower() in TrustedHosts(parse_hosts(",".join(entries)))
    except ValueError:
        # `Settings.from_env` reports the error next.
        return {}
    return {} if trusted else {"EMBEDQ_TRUSTED_HOSTS": ",".join([*entries, host])}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
