"""kombu's poller, which also runs the fetchers of our channels."""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis as stock

from worker.transport.fetcher import Fetcher
from worker.transport.wire import Wire


class Poller(stock.MultiChannelPoller):
    """Polls kombu's connections and ours; owned by one thread.

    With an event loop, `on_poll_start` runs before each poll and the loop calls `on_readable`.
    Without one, `get` does both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._wires: dict[int, tuple[Fetcher, Wire]] = {}

    def watch(self, fetcher: Fetcher, wire: Wire) -> None:
        """Poll a new connection of ours."""
        self._wires[wire.fd] = fetcher, wire
        self.poller.register(wire.fd, self.eventflags)

    def forget(self, connection: Any) -> None:
        """Stop polling a connection that closed its socket: the number may be reused."""
        for fd, (_, wire) in list(self._wires.items()):
            if wire.connection is connection:
                del self._wires[fd]
                self._unregister_from_poll(fd)

    def check(self) -> None:
        """Drop connections that are half-open; the loop calls it every second."""
        for channel in list(self._channels):
            channel.fetcher.check()

    # Seen by kombu.

    @property
    def fds(self) -> dict[int, Any]:
        return {**super().fds, **self._wires}

    def on_poll_init(self, poller: Any) -> None:
        self.poller = poller

    def on_poll_start(self) -> None:
        super().on_poll_start()
        for channel in list(self._channels):
            channel.fetcher.turn()

    def on_readable(self, fileno: int) -> Any:
        found = self._wires.get(fileno)
        if found is not None:
            fetcher, wire = found
            delivered = fetcher.delivered
            wire.on_readable()
            fetcher.deliver()
            if fetcher.delivered == delivered:
                raise Empty
            return True
        if self._fd_to_chan.get(fileno, (None, None))[1] == "LISTEN":
            # Pub/sub is read even without capacity: unread data would make the loop spin.
            return self._fd_to_chan[fileno][0].handlers["LISTEN"]()
        return super().on_readable(fileno)

    def handle_event(self, fileno: int, event: int) -> Any:
        if fileno in self._wires:
            return self.on_readable(fileno), self
        return super().handle_event(fileno, event)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        self.check()
        for channel in list(self._channels):
            if channel.fetcher.ready:
                channel.fetcher.deliver()
                return None
        return super().get(callback, timeout)

    def maybe_restore_messages(self) -> None:
        """The fetchers do it."""

    def close(self) -> None:
        for fd in self._wires:
            self._unregister_from_poll(fd)
        self._wires.clear()
        super().close()
