"""Storage of uploaded and output files: a folder, or any URL that fsspec supports."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from worker.contract.errors import EmbedqError
from worker.contract.settings import default_folder
from worker.metrics.redaction import redact

logger = logging.getLogger(__name__)

#: Bytes that are copied or sent at once.
CHUNK = 256 * 1024
#: Errors of reading and writing; NotImplementedError occurs if gevent has patched the event loop of
#: a bucket. Opening has more: the package for this kind of URL is not installed, the URL is
#: invalid, or there is no home folder.
_USING = (OSError, NotImplementedError)
_OPENING = (OSError, ImportError, ValueError, RuntimeError)


class StorageUnavailable(EmbedqError):
    """The storage of files cannot be reached, read or written."""

    code = "storage_unavailable"


class ObjectMissing(StorageUnavailable):
    """The storage answers, but has no such object."""

    code = "file_not_found"


class Storage:
    """Objects by name under one root. Safe to share between threads.

    This package generates the names: paths of letters, digits, `-`, `_` and `/`. Users' file names
    never become part of one. Every method raises StorageUnavailable.
    """

    def __init__(self, url: str) -> None:
        #: A folder or a URL; empty: the folder next to the data of `embedq up`.
        self.url = url
        #: The URL for messages, without its secrets.
        self._shown = f"EMBEDQ_FILES={redact(url)!r}"

    @contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object to write, replacing an existing one. On an error, no object is left."""
        with self._errors():
            file = self._filesystem.open(self._path(name), "wb")
        try:
            with self._errors(_USING):
                yield file
                file.close()
        except BaseException:
            self._give_up(file, name)
            raise

    @contextmanager
    def reader(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object to read; it is seekable."""
        with self._errors():
            file = self._filesystem.open(self._path(name), "rb")
        with self._errors(_USING), file:
            yield file

    def chunks(self, name: str) -> Generator[bytes]:
        """Yield the bytes of an object, which the first step opens."""
        with self.reader(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def join(self, parts: Sequence[str], name: str) -> int:
        """Concatenate objects into one. Returns its size in bytes."""
        with self.writer(name) as target:
            for part in parts:
                with self.reader(part) as source:
                    shutil.copyfileobj(source, target, CHUNK)
            return target.tell()

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        with self._errors():
            return bool(self._filesystem.exists(self._path(name)))

    def remove(self, name: str) -> None:
        """Remove an object, or a folder with its contents; a missing one is no error."""
        with self._errors():
            try:
                self._filesystem.rm(self._path(name), recursive=True)
            except FileNotFoundError:
                logger.debug("%s is gone already", name)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the root on it, created at first use."""
        # Producers of jobs do not need it.
        import fsspec

        local = "://" not in self.url or self.url.startswith("file://")
        with self._errors():
            url = self.url or str(default_folder() / "files")
            filesystem, root = fsspec.url_to_fs(url, **({"auto_mkdir": True} if local else {}))
            if local:
                # Other users of this machine must not read the files.
                Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        return filesystem, root.rstrip("/")

    @property
    def _filesystem(self) -> Any:
        return self._place[0]

    def _path(self, name: str) -> str:
        return f"{self._place[1]}/{name}"

    def _give_up(self, file: IO[bytes], name: str) -> None:
        """Remove an object that was not written completely."""
        try:
            file.close()
            self.remove(name)
        except (OSError, StorageUnavailable) as error:
            logger.warning("%s was not removed: %s", name, type(error).__name__)

    @contextmanager
    def _errors(self, kinds: tuple[type[Exception], ...] = _OPENING) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self._shown} does not hold the file") from error
        except kinds as error:
            raise StorageUnavailable(f"{self._shown}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The reason, without the error's own text, which may quote the URL or a signed request."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return os.strerror(number)
    if isinstance(error, ImportError):
        return "the package for this kind of URL is not installed"
    logger.warning("The storage of files cannot be used", exc_info=error)
    return type(error).__name__
