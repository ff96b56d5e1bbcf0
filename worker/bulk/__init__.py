"""Batches of requests by the thousand: a Celery task reads them, has them run, writes the answers.

In reading order:

- `task`         the Celery task, and how often it tries
- `coordinator`  one run over a batch, from wherever the last one came to
- `requests`     the lines of a file, checked
- `windows`      lines that are answered, written and counted together
- `dispatch`     their texts as jobs, a bounded number at a time
- `notices`      word of jobs that ended
- `answers`      lines of the output
- `means`        what a coordinator works with
"""
