"""litellm, which sends no `encoding_format` and so gets floats."""

from __future__ import annotations

import litellm
from report import run


def embed(url: str, model: str, texts: list[str]) -> list[list[float]]:
    answer = litellm.embedding(model=f"openai/{model}", input=texts, api_base=url, api_key="none")
    return [one["embedding"] for one in answer.data]


run(embed, "litellm", "openai")
