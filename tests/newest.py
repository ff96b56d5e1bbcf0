"""The requirements of the project without upper bounds: `python -m tests.newest`.

pip has no option to ignore a bound of the project that it installs. So `make test-newest` installs
these requirements and then the project without its dependencies. Bounds that other libraries set
for each other hold, and preview releases are left out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
EXTRAS = ("api", "worker", "local", "dev")


def requirements() -> list[str]:
    """Each requirement with its lower bound alone; torch as the environment has it."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])]
    return sorted({without_upper_bound(one) for one in stated})


def without_upper_bound(requirement: str) -> str:
    """`celery~=5.7.0` and `celery==5.7.0` as `celery>=5.7.0`, `redis>=6.4,<9` as `redis>=6.4`."""
    parts = [part for part in requirement.split(",") if not part.lstrip().startswith("<")]
    return re.sub("[~=]=", ">=", ",".join(parts))


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements()) + "\n")
