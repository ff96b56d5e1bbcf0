"""Images by buildah: the base images from Debian's packages, ours from their Dockerfiles.

The base images replace those of Docker Hub: the same programs under the same names. The storage is
a separate folder, so that images of other projects are neither seen nor removed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.images.compose import Health
from tests.processes import ROOT

TOOLS = ("buildah", "debootstrap", "ip")
_FOLDER = ROOT / "build" / "images"
_NANOSECONDS = 1e9


@dataclass(frozen=True)
class Base:
    """A base image: packages of a Debian release, and a command to finish it."""

    release: str
    packages: Sequence[str]
    finish: str
    config: Sequence[str] = ()


BASES: Mapping[str, Base] = {
    "docker.io/library/python:3.11-slim": Base(
        "bookworm",
        ("ca-certificates", "python3", "python3-pip"),
        # That image has `python`, and its pip installs for all users.
        "ln -s python3 /usr/bin/python; rm /usr/lib/python3*/EXTERNALLY-MANAGED",
    ),
    "docker.io/valkey/valkey:8-alpine": Base(
        "trixie",
        ("valkey-server", "valkey-tools"),
        # The server of that image accepts other hosts without a password.
        "mkdir /data; chown valkey:valkey /data; cd /usr/local/bin;"
        """ printf '#!/bin/sh\nexec /usr/bin/valkey-server "$@" --protected-mode no\n'"""
        " > valkey-server; chmod +x valkey-server",
        ("--user", "valkey", "--workingdir", "/data"),
    ),
}


@dataclass(frozen=True)
class Image:
    """The configuration of an image."""

    name: str
    #: Bytes of all layers.
    size: int
    command: Sequence[str]
    stop_signal: str
    health: Health | None


def missing() -> list[str]:
    """The tools that this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def buildah(*arguments: str, **how: Any) -> str:
    """Run buildah on our storage. Returns its output, raises CalledProcessError."""
    done = subprocess.run(command(*arguments), stdout=subprocess.PIPE, text=True, check=True, **how)
    return done.stdout.strip()


def command(*arguments: str) -> list[str]:
    """The command line of buildah on our storage."""
    places = ("--root", str(_FOLDER / "storage"), "--runroot", str(_FOLDER / "run"))
    return ["buildah", *places, *arguments]


def full_name(name: str) -> str:
    """The full name of a base image that a file names in short."""
    found = next((one for one in BASES if one.endswith(f"/{name}")), None)
    if found is None:
        raise ValueError(f"no recipe for the base image {name!r}; known: {', '.join(BASES)}")
    return found


def make_base(full: str) -> None:
    """Make a base image of that full name, once."""
    base = BASES[full]
    if full in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return
    print(f"Making {full} of packages of Debian {base.release} ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="embedq-base-") as folder:
        packages = f"--include={','.join(base.packages)}"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", packages, base.release, f"{folder}/root"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"debootstrap {base.release}: {made.stdout[-2000:]}")
        finish = f"{base.finish}; rm -rf /var/cache/apt/archives /var/lib/apt/lists/*"
        subprocess.run(["chroot", f"{folder}/root", "sh", "-ec", finish], check=True)
        subprocess.run(
            ["tar", "-C", f"{folder}/root", "-cf", f"{folder}/root.tar", "."], check=True
        )
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, f"{folder}/root.tar", "/")
        if base.config:
            buildah("config", *base.config, container)
        buildah("commit", "--quiet", "--rm", container, full)


def bases(dockerfile: Path) -> set[str]:
    """The full names of the images that a Dockerfile starts from."""
    lines = (line.split() for line in dockerfile.read_text().splitlines())
    return {full_name(line[1]) for line in lines if line and line[0] == "FROM"}


def build(name: str, dockerfile: Path, arguments: Mapping[str, str]) -> Image:
    """Build an image of a Dockerfile over the repository, with the machine's settings of pip."""
    for base in bases(dockerfile):
        make_base(base)
    print(f"Building {name} from {dockerfile.relative_to(ROOT)} ...", flush=True)
    given = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    with tempfile.TemporaryDirectory(prefix="embedq-build-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            ended = subprocess.run(
                command(
                    *("build", "--isolation", "chroot", "--pull-never", "--layers"),
                    # The other format has no health checks.
                    *("--format", "docker", "--file", str(dockerfile), "--tag", name),
                    *(*given, *_pip_settings(Path(folder)), str(ROOT)),
                ),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if ended.returncode:
            raise RuntimeError(f"{dockerfile.name} does not build:\n{log.read_text()[-4000:]}")
    return inspect(name)


def inspect(name: str) -> Image:
    """Read the configuration of an image in our storage."""
    docker = json.loads(buildah("inspect", "--type", "image", name))["Docker"]
    config = docker["config"]
    health = config.get("Healthcheck")
    return Image(
        name,
        size=size(name),
        command=[*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())],
        stop_signal=config.get("StopSignal", "SIGTERM"),
        health=None
        if health is None
        else Health(
            health["Test"][1:],
            interval=health["Interval"] / _NANOSECONDS,
            timeout=health["Timeout"] / _NANOSECONDS,
            retries=health["Retries"],
            start=health["StartPeriod"] / _NANOSECONDS,
        ),
    )


def size(name: str) -> int:
    """Bytes of an image, to three digits."""
    images = json.loads(buildah("images", "--json"))
    number, unit = next(one["size"] for one in images if name in (one["names"] or ())).split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def _pip_settings(folder: Path) -> list[str]:
    """Options that give a build this machine's settings of pip, and the places named in them."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    places: set[str] = set()
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'")
        for word in value.strip("'").split():
            # The files of an index are in its folder.
            path = str(Path(word[7:]).parent) if word.startswith("file://") else word
            if path.startswith("/") and Path(path).exists():
                places.add(path)
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {one}\n" for key, one in settings.items()))
    mounts = {"/etc/pip.conf": str(file)} | {place: place for place in places}
    return [part for to, here in mounts.items() for part in ("--volume", f"{here}:{to}:ro")]
