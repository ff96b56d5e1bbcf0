"""Requests revoked or expired before they ran: each ends, or goes back to its queue."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from worker.pool.request import end_unrun


class Request:
    """A request; storing its end succeeds, is refused, or raises."""

    def __init__(self, answer: bool | Exception) -> None:
        self._answer = answer
        self.put_back = False

    def revoked(self) -> bool:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def reject(self, *, requeue: bool) -> None:
        self.put_back = requeue


@pytest.mark.parametrize("ended", [True, False])
def test_what_celery_has_forgotten_to_be_revoked_is_put_back(ended: bool) -> None:
    request: Any = Request(ended)
    end_unrun(request)
    assert request.put_back is not ended


def test_one_whose_end_cannot_be_stored_is_put_back_and_the_error_told() -> None:
    request: Any = Request(redis.ConnectionError("away"))
    with pytest.raises(redis.ConnectionError):
        end_unrun(request)
    assert request.put_back
