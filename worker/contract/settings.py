"""Every setting: its variable, default, allowed values and meaning, in one declaration each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from worker.contract import setting_values as values
from worker.contract.errors import SettingsError
from worker.contract.hosts import parse_hosts
from worker.contract.models import ModelSpec
from worker.metrics import redaction

DEFAULT_BROKER = "redis://127.0.0.1:6379/0"
DEFAULT_MODEL_NAME = "all-MiniLM-L6-v2"

_REDIS_SCHEMES = ("redis", "rediss", "sentinel", "socket", "unix")


@dataclass(frozen=True, slots=True)
class Variable:
    """The environment variable of a setting, and the parser of its value."""

    name: str
    parse: Callable[[str], Any]

    def read(self, value: str) -> Any:
        """Parse a value. Raises SettingsError naming variable, value and allowed values."""
        try:
            return self.parse(value)
        except ValueError as error:
            raise SettingsError(f"{self.name}={redaction.redact(value)!r} {error}") from None


def _setting(name: str, default: Any, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
    """A field with its variable.

    The comment above a field is its line in docs/settings.md; a test compares both.
    """
    return field(default=default, repr=not secret, metadata={"variable": Variable(name, parse)})


@dataclass(frozen=True)
class Settings:
    """Decisions of the operator, from the environment."""

    #: Redis ≥ 6.2 or Valkey; also `rediss://`, `redis+socket://PATH?virtual_host=0`, `sentinel://`
    broker_url: str = _setting("CELERY_BROKER_URL", DEFAULT_BROKER, values.server, secret=True)
    #: the server of results, in the same forms (default: the broker)
    result_backend: str = _setting(
        "CELERY_RESULT_BACKEND", DEFAULT_BROKER, values.server, secret=True
    )
    #: a path or a Hub id of a [dense model](models.md); several as `name=path,name=path`
    #: (default: the packaged all-MiniLM-L6-v2)
    models: tuple[ModelSpec, ...] = _setting(
        "EMBEDQ_MODEL", (ModelSpec(DEFAULT_MODEL_NAME),), values.models
    )
    #: `cpu`, `cuda`, `cuda:1`, `mps`
    device: str = _setting("EMBEDQ_DEVICE", "auto", values.device)
    #: `torch`, or on a CPU `openvino` (`pip install 'embedq[openvino]'`); `auto`: torch, the
    #: faster in float32
    backend: str = _setting("EMBEDQ_BACKEND", "auto", values.backend)
    #: `float32` on a CPU; `float32`, `bfloat16`, `float16`, and with OpenVINO `int8`
    dtype: str = _setting("EMBEDQ_DTYPE", "auto", values.dtype)
    #: mean cosine to float32 that a smaller format must reach at start
    min_cosine: float = _setting("EMBEDQ_MIN_COSINE", 0.99, values.cosine)
    #: part of a GPU's memory that one worker may use (default: `1`)
    gpu_memory_share: float = _setting("EMBEDQ_GPU_MEMORY_SHARE", 1.0, values.share)
    #: what `embedq tune` wrote: fills backend, format, threads and batch tokens where they are not
    #: set (default: `tuned.json` in the cache)
    tuned: Path | None = _setting("EMBEDQ_TUNED", None, values.path)
    #: where models converted for OpenVINO are kept; old ones go past 16 GiB (default:
    #: `~/.cache/embedq`)
    cache_dir: Path | None = _setting("EMBEDQ_CACHE_DIR", None, values.path)
    #: MiB of Redis' memory that vectors of earlier texts may take (default: `0`: off)
    cache_bytes: int = _setting("EMBEDQ_CACHE_MB", 0, values.whole(least=0, unit=2**20))
    #: tokens of one forward pass (default: by device)
    batch_tokens: int | None = _setting("EMBEDQ_BATCH_TOKENS", None, values.positive)
    #: threads of one forward pass on a CPU (default: one a core)
    threads: int | None = _setting("EMBEDQ_THREADS", None, values.positive)
    #: the master's name where the URLs are `sentinel://`
    sentinel_master: str = _setting("EMBEDQ_SENTINEL_MASTER", "mymaster", str)
    #: hashed keys with their quotas, made by `embedq keys add` (default: none: no keys are asked
    #: for)
    api_keys_file: Path | None = _setting("EMBEDQ_API_KEYS_FILE", None, Path)
    #: `Host` values that the API accepts, comma-separated; others are 400 (default: without keys:
    #: loopback names, any IP address, `--host`; with keys: any)
    trusted_hosts: tuple[str, ...] = _setting("EMBEDQ_TRUSTED_HOSTS", (), parse_hosts)
    #: a `.tiktoken` file: the API decodes token ids that OpenAI clients send (default: none)
    token_table: Path | None = _setting("EMBEDQ_TOKEN_TABLE", None, Path)
    #: folder or [fsspec](https://filesystem-spec.readthedocs.io) URL of uploaded files and
    #: batches' output; API and workers need the same (default: beside the data of `embedq up`)
    files: str = _setting("EMBEDQ_FILES", "", values.place, secret=True)
    #: the Celery queue
    queue: str = _setting("EMBEDQ_QUEUE", "embedq", values.queue)
    #: seconds that an ended job can be read
    result_ttl: int = _setting("EMBEDQ_RESULT_TTL", 3600, values.positive)
    #: `true`: the API accepts jobs while no worker is live, in place of 503 `no_worker` (default:
    #: `false`)
    accept_without_workers: bool = _setting("EMBEDQ_ACCEPT_WITHOUT_WORKERS", False, values.flag)
    #: bytes of a request, after inflation; past it 413 (default: `8 MiB`)
    max_job_bytes: int = _setting("EMBEDQ_MAX_JOB_BYTES", 8 * 2**20, values.size)
    #: tokens that wait; past it 503
    max_queued_tokens: int = _setting("EMBEDQ_MAX_QUEUED_TOKENS", 10_000_000, values.positive)
    #: MiB of waiting messages; past it 503 (default: a quarter of the server's `maxmemory`, else
    #: 1 GiB)
    max_queued_bytes: int | None = _setting("EMBEDQ_MAX_QUEUED_MB", None, values.mebibytes)
    #: MiB of stored results; past it 503 (default: from the server's `maxmemory`)
    max_result_bytes: int | None = _setting("EMBEDQ_MAX_RESULT_MB", None, values.mebibytes)
    #: MiB of all stored files, a fifth of it for one tenant; past it 413 (default: 50 GB)
    max_files_bytes: int | None = _setting("EMBEDQ_MAX_FILES_MB", None, values.mebibytes)
    #: seconds after which a silent worker's jobs run elsewhere
    lease_seconds: int = _setting("EMBEDQ_LEASE_SECONDS", 12, values.whole(least=3))
    #: times a job may kill a worker before it is failed as `poisoned`
    max_attempts: int = _setting("EMBEDQ_MAX_ATTEMPTS", 3, values.positive)
    #: seconds after which a forward pass, or the work of another thread, counts as hung
    forward_seconds: int = _setting("EMBEDQ_FORWARD_SECONDS", 300, values.positive)
    #: seconds that a warm shutdown may take
    shutdown_seconds: int = _setting("EMBEDQ_SHUTDOWN_SECONDS", 20, values.positive)
    #: `json`: one object a line, from worker and API
    log_format: str = _setting("EMBEDQ_LOG_FORMAT", "text", values.one_of("text", "json"))
    #: threads for tasks other than `embed`
    task_threads: int = _setting("EMBEDQ_TASK_THREADS", 4, values.positive)

    def __post_init__(self) -> None:
        for url in (self.broker_url, self.result_backend, self.files):
            redaction.protect(url)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment; an empty variable counts as unset.

        Raises SettingsError naming variable, value and allowed values.
        """
        found: dict[str, Any] = {}
        for setting in fields(cls):
            variable: Variable = setting.metadata["variable"]
            if value := environ.get(variable.name, "").strip():
                found[setting.name] = variable.read(value)
        if "broker_url" in found:
            found.setdefault("result_backend", found["broker_url"])
        return cls(**found)


def is_redis(url: str) -> bool:
    """Whether a URL that Celery takes names a Redis server."""
    return url.split("://")[0].removeprefix("redis+") in _REDIS_SCHEMES


def default_folder() -> Path:
    """The folder of embedq's data by default, by the XDG base directory rules."""
    base = os.environ.get("XDG_DATA_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share"
    return home / "embedq"


def user_cache() -> Path:
    """The user's cache folder for embedq, which may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, by the XDG Base Directory Specification.
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "embedq"
