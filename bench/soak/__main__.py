"""Soaks: load, and whatever may go wrong under it; every accepted job is accounted for.

  chaos     workers, connections and Valkey are killed, workers are stopped (the default)
  full      Redis is loaded past its memory, and filled by something else
  drift     a million jobs and two hundred reconnects leave nothing behind
  failover  Sentinel names another primary
  takeover  a worker is killed that holds 2,000 jobs; another runs them
  links     a worker is stopped past its lease with linked jobs, and continued
  bulk      everything is killed while one batch of requests runs
  all       all of these but bulk, and chaos on kombu's own transport to compare with

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
    """The soak's exit status: 0, or 1 where something does not hold."""
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
