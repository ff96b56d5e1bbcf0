"""llama-index, which sends ten texts at a time."""

from __future__ import annotations

from llama_index.embeddings.openai import OpenAIEmbedding
from report import run


def embed(url: str, model: str, texts: list[str]) -> list[list[float]]:
    embedding = OpenAIEmbedding(model_name=model, api_base=url, api_key="none")
    return embedding.get_text_embedding_batch(texts)


run(embed, "llama-index-embeddings-openai", "openai")
