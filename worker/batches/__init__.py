"""OpenAI's batches: a Celery task reads the requests, runs them as jobs and writes the answers.

In reading order:

- `task`: the Celery task and its retries
- `coordinator`: one run of the task, from the last saved progress
- `processing`: run the requests in windows
- `requests`: validate the lines of a file
- `windows`: requests whose answers are written together
- `dispatch`: submit the texts as jobs, with a bounded number under way
- `notifications`: receive notices of completed jobs
- `answers`: lines of the output file
- `finishing`: join the parts of the output into files
- `resources`: the connections and settings of a coordinator
"""
