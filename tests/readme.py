"""The examples of the README, as they stand."""

from __future__ import annotations

import re

from tests.processes import ROOT

README = (ROOT / "README.md").read_text()
#: Where they expect the service.
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """The text of a section of the second level."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rest_examples() -> list[str]:
    """The blocks that call the service over REST; `curl` fails for an error, unlike there."""
    found = [block for block in blocks("sh") if "curl" in block and ADDRESS in block]
    return [block.replace("curl -s", "curl -sSf") for block in found]
