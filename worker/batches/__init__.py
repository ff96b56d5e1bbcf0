"""OpenAI's batches: a Celery task reads the requests, runs them as jobs and writes the answers.

In reading order:

- `task`: the Celery task and its retries
- `coordinator`: one run of the task, from the last saved progress
- `processing`: run the requests in windows
- `lines`: read and validate the lines of a file
- `packs`: windows of lines with answers written together, and their jobs
- `dispatch`: submit the texts as jobs, with a bounded number under way
- `notifications`: receive notices of completed jobs
- `output`: lines of the output, and the joined files
- `resources`: the connections and settings of a coordinator
"""
