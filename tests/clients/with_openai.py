"""The openai client, in either form, one after the other and asynchronously."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI, OpenAI
from report import run


def embed(url: str, model: str, texts: list[str]) -> list[list[float]]:
    with OpenAI(base_url=url, api_key="none") as client:
        assert model in [one.id for one in client.models.list()]
        answer = client.embeddings.create(model=model, input=texts)
        floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    vectors = [one.embedding for one in answer.data]
    apart = asyncio.run(embed_apart(url, model, texts))
    for other in (apart, [one.embedding for one in floats.data]):
        for one, two in zip(vectors, other, strict=True):
            assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    return vectors


async def embed_apart(url: str, model: str, texts: list[str]) -> list[list[float]]:
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model=model, input=text) for text in texts)
        )
    return [answer.data[0].embedding for answer in answers]


run(embed, "openai")
