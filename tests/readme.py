"""The examples of the README and of docs/examples.md, unchanged."""

from __future__ import annotations

import re

from tests.processes import ROOT

#: The pages with examples that run unchanged.
README, EXAMPLES = ((ROOT / page).read_text() for page in ("README.md", "docs/examples.md"))
#: The address of the service in the examples.
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of a language in some pages, all by default."""
    text = "\n".join(pages or (README, EXAMPLES))
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def section(page: str, title: str) -> str:
    """The text of a section of the second level."""
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rest_examples() -> list[str]:
    """The blocks that call the service over REST; here `curl` fails for an error."""
    found = [block for block in blocks("sh") if "curl" in block and ADDRESS in block]
    return [block.replace("curl -s", "curl -sSf") for block in found]
