"""`python -m tests.images` (`make images`): build the container images, run and try them.

Follows docker-compose.yml without a container engine: `buildah` builds the Dockerfiles and runs
their images, `debootstrap` makes the base images, and each service has a network namespace. Exits 1
if a check fails; exits 0 with the reason if the tools or the rights are missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.images import builder
from tests.images.trial import Trial, build


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--build-only", action="store_true", help="build the images, run nothing")
    options = parser.parse_args()
    if reason := _reason_to_skip():
        print(f"Skipped: {reason}")
        return
    try:
        images = build()
        if not options.build_only:
            print("Running them as docker-compose.yml says ...", flush=True)
            with tempfile.TemporaryDirectory(prefix="embedq-images-") as folder:
                trial = Trial(images, Path(folder))
                try:
                    trial.run()
                finally:
                    trial.close()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; containers and networks are removed")
    except (AssertionError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"Failed: {error}")
    print("The images hold what the compose files promise.")


def _reason_to_skip() -> str | None:
    if missing := builder.missing():
        return f"this machine has no {', '.join(missing)} (Debian's packages {_PACKAGES})"
    if os.geteuid():
        return "building and running images without a container engine needs root"
    return None


_PACKAGES = "buildah, debootstrap and iproute2"


if __name__ == "__main__":
    main()
