"""Files of texts in, files of vectors out: what `embedq embed` does.

In reading order: `rows` reads texts out of files one by one, `encoding` turns windows of them into
vectors, on this machine or through a service, in order; `keeping` holds what is done so that an
interrupted run goes on; `writing` makes the output of it; `run` is the whole.
"""

from worker.corpus.run import Report, run, stream

__all__ = ["Report", "run", "stream"]
