"""OpenAI's embeddings requests, for whoever answers them: the API at once, a batch line by line.

- `requests`    the body of a request, as a model
- `calls`       from a body to texts and options
- `answers`     from vectors to the body of an answer, from an error to its document
- `token_table` token ids back to text
"""
