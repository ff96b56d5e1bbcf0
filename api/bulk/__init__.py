"""OpenAI's files and batches: requests by the thousand, nobody waiting for them.

In reading order:

- `files`    routes of files
- `uploads`  a multipart body, streamed into the storage
- `batches`  routes of batches
- `pages`    lists as OpenAI's clients page through them
- `schemas`  what is answered, as models
"""
