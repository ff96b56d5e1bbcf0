"""Soaks: faults under load, and a check of the outcome of every accepted job.

  chaos     workers, connections and Valkey are killed, workers are stopped (the default)
  full      Redis is loaded past its memory, and other keys fill it
  drift     resource use stays flat over a million jobs and two hundred reconnects
  failover  Sentinel promotes the replica
  takeover  a worker with 2,000 leased jobs is killed; another worker runs them
  links     a worker is stopped past its lease with linked jobs, and continued
  bulk      workers, the API, connections and Valkey are killed during one batch of requests
  all       all of these except bulk, and chaos on kombu's own transport for comparison

Options of a soak: python -m bench.soak SOAK --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from bench.soak import bulk, drift, every, failover, full, kills, links, takeover

SOAKS: dict[str, Callable[[Sequence[str]], int]] = {
    "chaos": kills.main,
    "full": full.main,
    "drift": drift.main,
    "failover": failover.main,
    "takeover": takeover.main,
    "links": links.main,
    "bulk": bulk.main,
    "all": every.main,
}


def main(arguments: Sequence[str]) -> int:
    """Run a soak; return its exit status: 0, or 1 if a check fails, or 2 for an unknown soak."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m bench.soak [{'|'.join(SOAKS)}] [options]\n\n{__doc__}")
        return 0
    if not arguments or arguments[0].startswith("-"):
        return kills.main(arguments)
    name, *options = arguments
    if name not in SOAKS:
        print(f"there is no soak {name!r}; there are {', '.join(SOAKS)}", file=sys.stderr)
        return 2
    return SOAKS[name](options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
