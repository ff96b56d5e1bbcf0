"""When a refused caller should come back."""

from __future__ import annotations

import math

#: Seconds. Clients of OpenAI's API do not come back at all if told to wait longer.
LONGEST_RETRY = 120
#: Seconds after which a full store is worth another try: results leave it minute by minute.
STORE_RETRY = 60
#: Seconds in which a worker that was stopped or killed is usually back.
WORKER_RETRY = 10


def seconds_to_encode(tokens: int, tokens_per_second: float) -> int:
    """Whole seconds, 1 to 120, in which the workers get `tokens` done; 1 where nobody knows."""
    if tokens <= 0 or tokens_per_second <= 0:
        return 1
    return max(1, min(math.ceil(tokens / tokens_per_second), LONGEST_RETRY))
