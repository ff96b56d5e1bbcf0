"""Embed files of texts into files of vectors, for `embedq embed`.

In reading order:

- `rows`: read texts from files, one row at a time
- `runners`: the engine in this process, or a service
- `encoding`: encode windows of texts, several at a time, in order
- `checkpoint`: save the progress, so that an interrupted run can continue
- `writing`: write the vectors into a file
- `client`: a client of the REST interface
- `run`: one run, from a source to an output
"""

from worker.offline.run import Report, run, stream

__all__ = ["Report", "run", "stream"]
