from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk.stand import BulkStand, bulk_stand


@pytest.fixture
def bulk(redis_url: str, tmp_path: Path) -> Iterator[BulkStand]:
    with bulk_stand(redis_url, tmp_path / "files") as stand:
        yield stand
