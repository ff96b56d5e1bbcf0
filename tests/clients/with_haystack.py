"""Haystack: documents in batches, a query as a bare string."""

from __future__ import annotations

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from report import run


def embed(url: str, model: str, texts: list[str]) -> list[list[float]]:
    options = {"model": model, "api_base_url": url, "api_key": Secret.from_token("none")}
    documents = [Document(content=text, id=str(at)) for at, text in enumerate(texts)]
    embedder = OpenAIDocumentEmbedder(**options, progress_bar=False)
    found = embedder.run(documents=documents)["documents"]
    query = OpenAITextEmbedder(**options).run(text=texts[0])["embedding"]
    assert max(abs(a - b) for a, b in zip(query, found[0].embedding, strict=True)) < 1e-5
    return [one.embedding for one in found]


run(embed, "haystack-ai", "openai")
