"""Vectors of earlier texts, in Redis. Disabled unless `EMBEDQ_CACHE_MB` is set.

In reading order:

- `entries`: key and format of an entry
- `revision`: a digest of everything that affects a model's vectors
- `store`: read and write many entries, within a memory limit and a lifetime
"""
