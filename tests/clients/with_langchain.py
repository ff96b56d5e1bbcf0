"""LangChain: `checked` sends cl100k token ids, `unchecked` sends texts."""

from __future__ import annotations

import sys

from langchain_openai import OpenAIEmbeddings
from report import run


def embed(url: str, model: str, texts: list[str]) -> list[list[float]]:
    embeddings = OpenAIEmbeddings(
        model=model,
        base_url=url,
        api_key="none",
        check_embedding_ctx_length=sys.argv[3] == "checked",
    )
    vectors = embeddings.embed_documents(texts)
    assert embeddings.embed_query(texts[0]) == vectors[0] or sys.argv[3] == "checked"
    return vectors


run(embed, "langchain-openai", "openai")
