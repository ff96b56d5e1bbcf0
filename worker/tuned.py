"""The best configuration that `embedq tune` found for a model on a machine, in a file."""

from __future__ import annotations

import json
import logging
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from worker.contract.backends import backends
from worker.contract.models import ModelSpec
from worker.contract.settings import Settings, user_cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Values for the settings of the same names."""

    backend: str
    dtype: str
    threads: int | None
    batch_tokens: int


def path_of(settings: Settings) -> Path:
    """The path of the file with tuned configurations; the file may not exist."""
    return settings.tuned or (settings.cache_dir or user_cache()) / "tuned.json"


def remember(path: Path, spec: ModelSpec, device: str, found: Tuned) -> None:
    """Write `found`, keeping the entries of other models, machines, devices and torch versions.

    The write is atomic. Imports torch. Raises OSError if it cannot be written.
    """
    entries = _read(path) | {_key(spec, device): asdict(found)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(entries, indent=2) + "\n")
    draft.replace(path)


def applied(settings: Settings, spec: ModelSpec) -> Settings:
    """Fill unset values of `settings` with those found for `spec` on this machine.

    The entry is ignored if the environment asks for another backend or number format. Imports
    torch if the file has entries.
    """
    entries = _read(path_of(settings))
    entry = entries.get(_key(spec, settings.device)) if entries else None
    if entry is None:
        return settings
    try:
        found = Tuned(**entry)
    except TypeError:
        logger.warning("%s has an entry that is none of embedq's", path_of(settings))
        return settings
    if settings.backend not in ("auto", found.backend) or settings.dtype not in (
        "auto",
        found.dtype,
    ):
        return settings
    backend = backends().get(found.backend)
    if backend is None or backend.missing():
        message = "model %s was tuned for %s, which is not installed"
        logger.warning(message, spec.name, found.backend)
        return settings
    return replace(
        settings,
        backend=found.backend,
        dtype=found.dtype,
        threads=settings.threads or found.threads,
        batch_tokens=settings.batch_tokens or found.batch_tokens,
    )


def machine() -> str:
    """The factors of speed: the kind of processor and how many cores this process may use."""
    kind = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else kind}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(spec: ModelSpec, device: str) -> str:
    source = spec.source or spec.name
    where = Path(source).expanduser()
    model = where.resolve() if where.is_dir() else source
    # Only here: it imports torch.
    from worker.encoder.devices import describe

    return f"{model} on {describe(device)} of {machine()}, torch {metadata.version('torch')}"


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        entries = json.loads(text) if text else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and counts as empty: %s", path, error)
        return {}
    return entries if isinstance(entries, dict) else {}
