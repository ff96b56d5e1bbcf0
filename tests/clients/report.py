"""Shared code of the programs in this folder; runs in each client's own environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version

#: Takes the address, the model and texts, answers with their vectors.
Embed = Callable[[str, str, list[str]], list[list[float]]]


def run(embed: Embed, *distributions: str) -> None:
    """Embed the texts on standard input; the vectors or the error go out as one line of JSON."""
    answer: dict[str, object] = {"versions": {name: version(name) for name in distributions}}
    try:
        answer["vectors"] = embed(sys.argv[1], sys.argv[2], json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001  the clients' own, of many kinds
        answer["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
