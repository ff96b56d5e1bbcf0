"""OpenAI's files and batches API, under `/v1`.

In reading order:

- `files`: routes of files
- `uploads`: stream a multipart body into the storage
- `batches`: routes of batches
- `pages`: pagination as OpenAI's clients expect it
- `schemas`: the answers, as models
- `document`: the routes in the OpenAPI document
"""
