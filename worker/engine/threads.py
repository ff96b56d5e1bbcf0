"""The engine's threads: started, watched and joined together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping


class Threads:
    """Daemon threads. `runs` are their bodies by name.

    A thread that ends calls `ended` with its name. If it raised, it then calls `died` with the
    exception, and `threading.excepthook` gets it.
    """

    def __init__(
        self,
        runs: Mapping[str, Callable[[], None]],
        *,
        ended: Callable[[str], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._ended = ended
        self._died = died
        self._threads = [
            threading.Thread(target=self._guarded, args=(name, run), name=name, daemon=True)
            for name, run in runs.items()
        ]

    @property
    def alive(self) -> bool:
        """Whether any of them runs."""
        return any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start all of them, once."""
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the end of all threads except the calling one."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))

    def _guarded(self, name: str, run: Callable[[], None]) -> None:
        try:
            try:
                run()
            finally:
                self._ended(name)
        except BaseException as error:
            self._died(error)
            raise
