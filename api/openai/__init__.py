"""OpenAI's embeddings API under `/v1`, in OpenAI's shapes.

In reading order:

- `routes`      the routes put together, and what every answer under `/v1` has
- `embeddings`  a request that waits for its vectors
- `outcomes`    from a stored outcome to vectors or an error
- `deadlines`   how long a caller waits, and whether one still does
- `models`      what is served
- `schemas`     what is taken and answered, as models
- `errors`      what went wrong, in OpenAI's words
- `document`    all of it, for the OpenAPI document
"""
