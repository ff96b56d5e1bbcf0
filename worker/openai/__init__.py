"""OpenAI's embeddings requests and answers, for `/v1/embeddings` and for lines of batches.

In reading order:

- `requests`: the body of a request, as a model
- `calls`: convert a body into texts and options
- `answers`: convert vectors into the body of an answer, and an error into its document
- `token_table`: decode token ids into text
"""
