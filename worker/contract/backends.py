"""The registry of backends: names, number formats and devices, without their libraries.

A backend is one folder `worker/encoder/<name>_backend`. Its `__init__` defines `BACKEND` and
imports no compute library. Settings, `embedq tune` and `load` derive from this registry. The
folders are found by their names, without an import of `worker.encoder` from this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from worker.contract.errors import SettingsError

_PACKAGE = "worker.encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeBackend:
    """A compute library that runs models."""

    name: str
    #: Position in the order of `auto`, which takes the first backend with the number format.
    order: int
    #: Number formats, the default on a CPU first.
    dtypes: tuple[str, ...]
    #: Import name of the library that it needs, and the extra of embedq that installs it.
    library: str
    extra: str
    #: Whether it runs on the CPU only.
    cpu_only: bool = False
    #: Loads a model: takes a `ModelSpec` and `LoadOptions`, and returns an `Encoder`.
    open: Callable[..., Any]

    def missing(self) -> str | None:
        """Return the reason if the library is not installed, else None."""
        if find_spec(self.library) is not None:
            return None
        return f"backend {self.name} is not installed: pip install 'embedq[{self.extra}]'"


def backends() -> dict[str, ComputeBackend]:
    """Return every backend by its name, in the order of `auto`."""
    folders = (found.name for found in iter_modules(import_module(_PACKAGE).__path__))
    found: list[ComputeBackend] = [
        import_module(f"{_PACKAGE}.{name}").BACKEND for name in folders if name.endswith("_backend")
    ]
    return {backend.name: backend for backend in sorted(found, key=lambda one: one.order)}


def number_formats(among: Iterable[ComputeBackend] | None = None) -> tuple[str, ...]:
    """Return the number formats of these backends, None for all backends."""
    chosen = backends().values() if among is None else among
    return tuple(dict.fromkeys(dtype for backend in chosen for dtype in backend.dtypes))


def choose_backend(name: str, dtype: str) -> ComputeBackend:
    """Return the backend `name`, or with `auto` the first with this number format.

    Raises `SettingsError` for an unknown name or number format.
    """
    known = backends()
    if name not in ("auto", *known):
        raise SettingsError(f"backend {name!r} is none of auto, {', '.join(known)}")
    candidates = [backend for backend in known.values() if name in ("auto", backend.name)]
    for backend in candidates:
        if dtype in ("auto", *backend.dtypes):
            return backend
    formats = ", ".join(number_formats(candidates))
    raise SettingsError(f"dtype {dtype!r} is none of auto, {formats}")
