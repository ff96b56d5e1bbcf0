"""The compose files as values: merged, with variables and durations evaluated.

The part of the Compose specification that the files use; anything else raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.processes import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKER = ROOT / ".ci" / "docker"
GPU = DOCKER / "compose.gpu.yml"

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|(?P<bad>))"
)
_SECONDS = {"s": 1.0, "m": 60.0}
#: Keys of a service that `Service` holds, or that need a container engine.
_KNOWN = {
    "image",
    "build",
    "command",
    "environment",
    "volumes",
    "ports",
    "healthcheck",
    "stop_grace_period",
    "depends_on",
    "restart",
    "deploy",
}


@dataclass(frozen=True)
class Health:
    """The health check of a service. Times in seconds."""

    command: Sequence[str]
    interval: float
    timeout: float
    retries: int
    start: float = 0.0


@dataclass(frozen=True)
class Service:
    """One service of the compose files."""

    name: str
    #: The name of the image to run; None if the image is built.
    image: str | None
    dockerfile: Path | None
    arguments: Mapping[str, str]
    #: Empty: the image's.
    command: Sequence[str]
    environment: Mapping[str, str]
    #: Path in the container -> name of the volume.
    volumes: Mapping[str, str]
    #: (address, port) on the machine -> port of the service.
    ports: Mapping[tuple[str, int], int]
    #: None: the image's.
    health: Health | None
    grace: float
    #: Services that have to be healthy first.
    after: Sequence[str]


def services(variables: Mapping[str, str], *files: Path) -> dict[str, Service]:
    """The services of these files, later ones over earlier ones, in the order of their start."""
    merged: dict[str, Any] = {}
    for file in files or (COMPOSE,):
        merged = _over(merged, yaml.safe_load(file.read_text())["services"])
    found = {name: _service(name, _evaluated(one, variables)) for name, one in merged.items()}
    for one in found.values():
        for name in set(one.volumes.values()) - set(volumes(*files)):
            raise ValueError(f"{one.name}: the volume {name!r} is not declared")
    return dict(sorted(found.items(), key=lambda item: len(item[1].after)))


def volumes(*files: Path) -> set[str]:
    """The names of the declared volumes."""
    loaded = (yaml.safe_load(file.read_text()) for file in files or (COMPOSE,))
    return {name for one in loaded for name in one.get("volumes", {})}


def seconds(duration: str) -> float:
    """Seconds of a duration such as `1m30s`."""
    parts = re.findall(r"(\d+)([a-z]+)", duration)
    if "".join(map("".join, parts)) != duration or not parts:
        raise ValueError(f"not a duration: {duration!r}")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """A string with `${NAME}` and `${NAME:-default}` replaced; `$$` stands for one `$`."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        if match["name"] is None:
            raise ValueError(f"not a variable: {text!r}")
        return variables.get(match["name"]) or match["default"] or ""

    return _VARIABLE.sub(value, text)


def _over(low: Any, high: Any) -> Any:
    if isinstance(low, dict) and isinstance(high, dict):
        return low | {key: _over(low.get(key), value) for key, value in high.items()}
    return high


def _evaluated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolated(value, variables)
    if isinstance(value, list):
        return [_evaluated(one, variables) for one in value]
    if isinstance(value, dict):
        return {key: _evaluated(one, variables) for key, one in value.items()}
    return value


def _service(name: str, given: dict[str, Any]) -> Service:
    if unknown := set(given) - _KNOWN:
        raise ValueError(f"{name}: cannot evaluate {', '.join(sorted(unknown))}")
    build = given.get("build", {})
    environment = given.get("environment", {})
    return Service(
        name,
        image=given.get("image"),
        dockerfile=ROOT / build["dockerfile"] if build else None,
        arguments=build.get("args", {}),
        command=given.get("command", ()),
        environment={key: "" if one is None else str(one) for key, one in environment.items()},
        volumes={path: volume for volume, path in map(_pair, given.get("volumes", ()))},
        ports=dict(map(_port, given.get("ports", ()))),
        health=_health(given["healthcheck"]) if "healthcheck" in given else None,
        # Docker's default.
        grace=seconds(given.get("stop_grace_period", "10s")),
        after=[
            other
            for other, how in given.get("depends_on", {}).items()
            if how["condition"] == "service_healthy"
        ],
    )


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    return first, second


def _port(text: str) -> tuple[tuple[str, int], int]:
    address, published, target = text.rsplit(":", 2)
    return (address, int(published)), int(target)


def _health(given: dict[str, Any]) -> Health:
    how, *command = given["test"]
    if how != "CMD":
        raise ValueError(f"cannot evaluate a health check by {how}")
    return Health(
        command,
        interval=seconds(given["interval"]),
        timeout=seconds(given["timeout"]),
        retries=given["retries"],
        start=seconds(given.get("start_period", "0s")),
    )
