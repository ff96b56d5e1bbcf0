"""OpenAI's embeddings API, under `/v1`.

In reading order:

- `routes`: assemble the routes; headers of every answer
- `embeddings`: `POST /v1/embeddings`
- `outcomes`: convert a stored outcome into vectors or an error
- `deadlines`: the timeout of a request, and closed connections
- `models`: list the served models
- `schemas`: requests and answers, as models
- `errors`: errors in OpenAI's format
- `document`: the routes in the OpenAPI document
"""
