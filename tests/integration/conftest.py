"""Fixtures of the tests with workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.stand import Stand, embed_at
from tests.processes import Processes, ValkeyServer


@pytest.fixture
def stand(processes: Processes, valkey_server: Callable[..., ValkeyServer]) -> Iterator[Stand]:
    """A Redis of the test's own, without a worker."""
    server = valkey_server()
    with server.client() as client, embed_at(server.url) as app:
        yield Stand(processes, app, client)
