"""Routes and formats of other services.

- `openai`: OpenAI's embeddings and models
- `openai_batches`: OpenAI's files and batches
"""
