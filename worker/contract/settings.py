"""Every setting, read once from the environment into one frozen object."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from worker.contract.errors import SettingsError
from worker.contract.hosts import parse_hosts
from worker.contract.models import ModelSpec
from worker.metrics import redaction

DEFAULT_BROKER = "redis://127.0.0.1:6379/0"
DEFAULT_MODEL_NAME = "all-MiniLM-L6-v2"

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SIZE_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
#: Seconds, tokens and threads past which a number is a slip; Redis takes no longer times either.
_MOST = 2**31 - 1
T = TypeVar("T")

BACKENDS = ("auto", "torch", "openvino")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
LOG_FORMATS = ("text", "json")
_REDIS_SCHEMES = ("redis", "rediss", "sentinel", "socket", "unix")


@dataclass(frozen=True)
class Settings:
    """What the operator may decide. Units stand beside each field."""

    models: tuple[ModelSpec, ...] = (ModelSpec(DEFAULT_MODEL_NAME),)
    device: str = "auto"
    backend: str = "auto"
    dtype: str = "auto"
    #: Tokens of one forward pass; None: what the model's device likes.
    batch_tokens: int | None = None
    #: Threads of one forward pass on a CPU; None: one a core.
    threads: int | None = None
    #: Mean cosine to float32 below which a smaller number format is refused.
    min_cosine: float = 0.99
    #: The part of a GPU's memory that a worker may use.
    gpu_memory_share: float = 1.0
    #: What `embedq tune` wrote; None: `tuned.json` in the cache.
    tuned: Path | None = None
    #: Where converted models are kept; None: the user's cache, see `user_cache`.
    cache_dir: Path | None = None

    #: Bytes that vectors of earlier texts may take in Redis; 0: none are kept.
    cache_bytes: int = 0

    broker_url: str = field(default=DEFAULT_BROKER, repr=False)
    result_backend: str = field(default=DEFAULT_BROKER, repr=False)
    #: Name of the master where the URLs are `sentinel://`.
    sentinel_master: str = "mymaster"
    queue: str = "embedq"

    #: Tokens waiting in the queue past which the API answers 503.
    max_queued_tokens: int = 10_000_000
    #: Bytes of waiting messages past which the API answers 503; None: from the server's memory.
    max_queued_bytes: int | None = None
    #: Whether the API accepts jobs while no worker is live.
    accept_without_workers: bool = False
    #: Bytes of one request body, after inflation.
    max_job_bytes: int = 8 * 2**20
    #: Bytes that stored results may hold; None: from the server's `maxmemory`.
    max_result_bytes: int | None = None
    #: Seconds that an ended job can be read.
    result_ttl: int = 3600
    api_keys_file: Path | None = None
    #: Accepted hosts; empty: any with API keys, else loopback names and IP literals.
    trusted_hosts: tuple[str, ...] = ()
    #: A `.tiktoken` file with which the API decodes token ids; None: such requests are refused.
    token_table: Path | None = None
    #: Folder or fsspec URL of uploaded and made files; empty: beside the data of `embedq up`.
    files: str = field(default="", repr=False)
    #: Bytes of all stored files, a fifth of it for one tenant; None: 50 GB.
    max_files_bytes: int | None = None

    #: `json`: one object a line, for programs that collect logs.
    log_format: str = "text"

    #: Seconds after which the jobs of a worker that fell silent run elsewhere.
    lease_seconds: int = 12
    #: Crashes of a worker that one job may cause before it is failed as poisoned.
    max_attempts: int = 3
    #: Seconds after which a forward pass counts as hung and takes the worker down.
    forward_seconds: int = 300
    #: Seconds that a warm shutdown may take.
    shutdown_seconds: int = 20
    #: Threads for tasks other than `embedq.embed`.
    task_threads: int = 4

    def __post_init__(self) -> None:
        for url in (self.broker_url, self.result_backend, self.files):
            redaction.protect(url)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises SettingsError naming variable, value and what is allowed."""
        env = _Reader(os.environ if environ is None else environ)
        broker = env.parse("CELERY_BROKER_URL", DEFAULT_BROKER, _server)
        keys_file = env.text("EMBEDQ_API_KEYS_FILE", "")
        token_table = env.text("EMBEDQ_TOKEN_TABLE", "")
        cache_dir = env.text("EMBEDQ_CACHE_DIR", "")
        tuned = env.text("EMBEDQ_TUNED", "")
        max_files_mb = env.whole_or_none("EMBEDQ_MAX_FILES_MB", least=1)
        max_result_mb = env.whole_or_none("EMBEDQ_MAX_RESULT_MB", least=1)
        max_queued_mb = env.whole_or_none("EMBEDQ_MAX_QUEUED_MB", least=1)
        return cls(
            models=env.parse("EMBEDQ_MODEL", "", _models),
            device=env.parse("EMBEDQ_DEVICE", "auto", _device),
            backend=env.choice("EMBEDQ_BACKEND", BACKENDS),
            dtype=env.choice("EMBEDQ_DTYPE", DTYPES),
            batch_tokens=env.whole_or_none("EMBEDQ_BATCH_TOKENS", least=1),
            threads=env.whole_or_none("EMBEDQ_THREADS", least=1),
            min_cosine=env.parse("EMBEDQ_MIN_COSINE", str(cls.min_cosine), _cosine),
            gpu_memory_share=env.parse("EMBEDQ_GPU_MEMORY_SHARE", "1", _share),
            tuned=Path(tuned).expanduser() if tuned else None,
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            cache_bytes=env.whole("EMBEDQ_CACHE_MB", 0, least=0) * 2**20,
            broker_url=broker,
            result_backend=env.parse("CELERY_RESULT_BACKEND", broker, _server),
            sentinel_master=env.text("EMBEDQ_SENTINEL_MASTER", cls.sentinel_master),
            queue=env.parse("EMBEDQ_QUEUE", cls.queue, _queue),
            max_queued_tokens=env.whole("EMBEDQ_MAX_QUEUED_TOKENS", cls.max_queued_tokens, least=1),
            max_queued_bytes=None if max_queued_mb is None else max_queued_mb * 2**20,
            accept_without_workers=env.flag("EMBEDQ_ACCEPT_WITHOUT_WORKERS"),
            max_job_bytes=env.parse("EMBEDQ_MAX_JOB_BYTES", str(cls.max_job_bytes), _size),
            max_result_bytes=None if max_result_mb is None else max_result_mb * 2**20,
            result_ttl=env.whole("EMBEDQ_RESULT_TTL", cls.result_ttl, least=1),
            api_keys_file=Path(keys_file) if keys_file else None,
            trusted_hosts=env.parse("EMBEDQ_TRUSTED_HOSTS", "", parse_hosts),
            token_table=Path(token_table) if token_table else None,
            files=env.parse("EMBEDQ_FILES", "", _place),
            max_files_bytes=None if max_files_mb is None else max_files_mb * 2**20,
            log_format=env.choice("EMBEDQ_LOG_FORMAT", LOG_FORMATS),
            lease_seconds=env.whole("EMBEDQ_LEASE_SECONDS", cls.lease_seconds, least=3),
            max_attempts=env.whole("EMBEDQ_MAX_ATTEMPTS", cls.max_attempts, least=1),
            forward_seconds=env.whole("EMBEDQ_FORWARD_SECONDS", cls.forward_seconds, least=1),
            shutdown_seconds=env.whole("EMBEDQ_SHUTDOWN_SECONDS", cls.shutdown_seconds, least=1),
            task_threads=env.whole("EMBEDQ_TASK_THREADS", cls.task_threads, least=1),
        )


def is_redis(url: str) -> bool:
    """Whether a URL that Celery takes names a Redis server."""
    return url.split("://")[0].removeprefix("redis+") in _REDIS_SCHEMES


def default_folder() -> Path:
    """Where embedq keeps its data unless told otherwise, by the XDG base directory rules."""
    base = os.environ.get("XDG_DATA_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share"
    return home / "embedq"


def user_cache() -> Path:
    """The user's cache folder for embedq, which may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, by the XDG Base Directory Specification.
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "embedq"


class _Reader:
    """Reads single variables; an empty one counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def parse(self, name: str, default: str, parse: Callable[[str], T]) -> T:
        value = self.text(name, default)
        try:
            return parse(value)
        except ValueError as error:
            raise SettingsError(f"{name}={redaction.redact(value)!r} {error}") from None

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`, the first being the default."""

        def check(value: str) -> str:
            if value not in allowed:
                raise ValueError(f"is not one of {', '.join(allowed)}")
            return value

        return self.parse(name, allowed[0], check)

    def flag(self, name: str) -> bool:
        """`true`, `1`, `false` or `0`; false by default."""

        def check(value: str) -> bool:
            if value.lower() not in ("true", "1", "false", "0"):
                raise ValueError("is not one of true, 1, false, 0")
            return value.lower() in ("true", "1")

        return self.parse(name, "false", check)

    def whole(self, name: str, default: int, *, least: int) -> int:
        def check(value: str) -> int:
            number = int(value) if re.fullmatch(r"[+-]?[0-9]{1,15}", value) else None
            if number is None or not least <= number <= _MOST:
                raise ValueError(f"is not a whole number from {least:,} to {_MOST:,}")
            return number

        return self.parse(name, str(default), check)

    def whole_or_none(self, name: str, *, least: int) -> int | None:
        return self.whole(name, 0, least=least) if self.text(name, "") else None


def _models(value: str) -> tuple[ModelSpec, ...]:
    """`path`, `hub/id` or `name=path`, several separated by commas."""
    if not value:
        return (ModelSpec(DEFAULT_MODEL_NAME),)
    specs = []
    for part in (part.strip() for part in value.split(",")):
        name, separator, source = part.rpartition("=")
        if not source or (separator and not name):
            raise ValueError("is not a path, a Hub id or a list of name=path")
        specs.append(ModelSpec(name or _served_name(source), source))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"serves a name twice: {', '.join(names)}")
    return tuple(specs)


def _served_name(source: str) -> str:
    """A path is served under its last part, a Hub id as it is."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else source


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError("is not one of auto, cpu, cuda, cuda:N, mps")
    return value


def _cosine(value: str) -> float:
    number = float(value) if re.fullmatch(r"-?[01](\.[0-9]{1,9})?", value) else 2.0
    if not -1.0 <= number <= 1.0:
        raise ValueError("is not a cosine from -1 to 1 such as 0.99")
    return number


def _share(value: str) -> float:
    number = float(value) if re.fullmatch(r"[01](\.[0-9]{1,9})?", value) else 0.0
    if not 0.0 < number <= 1.0:
        raise ValueError("is not a share above 0 and up to 1 such as 0.5")
    return number


def _queue(value: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,128}", value):
        raise ValueError("is not a queue name of letters, digits, '.', '_' and '-'")
    return value


def _server(value: str) -> str:
    """A URL, or a list of them, whose password cannot be taken for a host or port."""
    for part in value.split(";"):
        try:
            parts = urlsplit(part)
            # A port that is none raises ValueError, quoting what may be a secret.
            misread = parts.port is not None and "@" in parts.path
        except ValueError:
            misread = True
        if misread or "@" in parts.fragment:
            raise ValueError(
                "is not a URL such as redis://:password@host:6379/0; in a password, "
                "'/', '?', '#', '@', ';' and '[' are written as %2F, %3F, %23, %40, %3B and %5B"
            )
    return value


def _place(value: str) -> str:
    """A folder that means the same in every process, or a URL."""
    if not value or "://" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ValueError("is neither an absolute path nor a URL such as s3://bucket/embedq")
    return str(path)


def _size(value: str) -> int:
    """Bytes, with an optional unit: `8388608`, `8 MiB`."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", value.lower())
    unit = _SIZE_UNITS.get(match[2]) if match else None
    if match is None or unit is None or int(match[1]) == 0:
        raise ValueError("is not a number of bytes such as 8388608 or 8 MiB")
    return int(match[1]) * unit
