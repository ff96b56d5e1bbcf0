"""A REST client of a running service, which the command line uses."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import urllib3

from worker.contract.backoff import Backoff
from worker.contract.errors import EmbedqError, JobFailed
from worker.contract.outcomes import Outcome, TextError
from worker.contract.results import matrix
from worker.metrics.redaction import redact

#: Seconds that one request waits for a job's end.
WAIT = 50
#: Seconds for a connection, and for an answer beyond the wait.
_CONNECT, _ANSWER = 5.0, 30.0
#: Seconds between tries if the service does not answer, and the number of tries in a row.
_BACKOFF, _TRIES = Backoff(0.5, 15.0), 10
#: Answers that say "not now".
_LATER = frozenset({429, 502, 503, 504})
_LOST = 404
_TOO_LARGE = 413
_NONE: Mapping[str, Any] = MappingProxyType({})


class ServiceError(EmbedqError):
    """The service refused a request, or does not answer; the message is its own."""

    code = "service_error"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Remote:
    """Jobs of one service. Every method may be called from any thread.

    Requests that are refused for now (429, 502, 503, 504) are retried at the time that the service
    names. Requests without an answer are retried a few times with backoff. A job is submitted with
    an Idempotency-Key, so that a retry does not run it twice. `close` ends the backoff: calls
    raise ServiceError.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ServiceError(f"{redact(url)!r} is not an address such as http://127.0.0.1:8000")
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "embedq"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool = urllib3.PoolManager(maxsize=16, block=False, retries=False)
        self._closing = threading.Event()
        #: Ids of jobs with a waiting call.
        self._under_way: set[str] = set()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], options: Mapping[str, Any]) -> Outcome | JobFailed:
        """Run one job to its end; `options` are those of `POST /jobs`.

        Raises ServiceError if the job is not valid or the service does not answer.
        """
        while True:
            try:
                return self._run(texts, options)
            except ServiceError as error:
                if error.status == _TOO_LARGE:
                    return JobFailed("too_large", error.message)
                # The job expired while the service could not be reached.
                if error.status != _LOST:
                    raise

    def submit(self, texts: Sequence[str], options: Mapping[str, Any] = _NONE) -> dict[str, Any]:
        """A job as it was accepted; `options` are those of `POST /jobs`. Raises ServiceError."""
        # Escaped, so that the service fails only a text with a lone surrogate.
        body = json.dumps({**options, "input": texts, "encoding_format": "base64"}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        return self._ask("POST", "/jobs", body, headers)

    def result(self, job_id: str) -> Outcome:
        """The result of a job that succeeded. Raises ServiceError."""
        result = self._ask("GET", f"{_path(job_id)}/result?encoding_format=base64")
        vectors, _ = matrix(result["embeddings"])
        errors = [TextError(**error) for error in result["errors"]]
        tokens = result["usage"]["prompt_tokens"]
        return Outcome(result["model"], vectors, tokens, errors, result["truncated"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it stands. Raises ServiceError."""
        return self._ask("GET", _path(job_id))

    def wait(self, job_id: str) -> dict[str, Any]:
        """A job when it has ended. Raises ServiceError."""
        while True:
            job = self._ask("GET", f"{_path(job_id)}?wait={WAIT}")
            if job["status"] not in ("queued", "running"):
                return job

    def cancel(self, job_id: str) -> dict[str, Any]:
        """A job after it was asked to end. Raises ServiceError."""
        return self._ask("POST", f"{_path(job_id)}/cancel")

    def jobs(self, *, status: str | None = None, limit: int = 20) -> Iterator[dict[str, Any]]:
        """The newest jobs, newest first. Raises ServiceError."""
        query = {"limit": str(min(limit, 100))} | ({"status": status} if status else {})
        path: str | None = f"/jobs?{urlencode(query)}"
        left = limit
        while path and left > 0:
            page = self._ask("GET", path)
            yield from page["data"][:left]
            left -= len(page["data"])
            path = page["next"]

    def close(self) -> None:
        """Cancel the jobs under way, end waiting calls, and close the connections."""
        with self._lock:
            self._closing.set()
            left = list(self._under_way)
        for job_id in left:
            with suppress(urllib3.exceptions.HTTPError):
                self._send("POST", f"{_path(job_id)}/cancel", None, {}, _CONNECT)
        self._pool.clear()

    def _run(self, texts: Sequence[str], options: Mapping[str, Any]) -> Outcome | JobFailed:
        job_id = self.submit(texts, options)["id"]
        with self._lock:
            self._under_way.add(job_id)
        try:
            job = self.wait(job_id)
            if job["status"] == "failed":
                return JobFailed(job["error"]["code"], job["error"]["message"])
            if job["status"] == "cancelled":
                raise ServiceError(f"job {job_id} was cancelled")
            return self.result(job_id)
        finally:
            with self._lock:
                self._under_way.discard(job_id)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        pauses, tries = iter(_BACKOFF), 0
        while not self._closing.is_set():
            try:
                response = self._send(method, path, body, headers or {}, WAIT + _ANSWER)
            except urllib3.exceptions.HTTPError as error:
                tries += 1
                if tries == _TRIES:
                    reason = type(error).__name__
                    raise ServiceError(f"{redact(self._url)} does not answer: {reason}") from error
                self._closing.wait(next(pauses))
                continue
            if response.status not in _LATER:
                return _answer(method, path, response)
            pauses, tries = iter(_BACKOFF), 0
            self._closing.wait(_retry_after(response))
        raise ServiceError("interrupted")

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method,
            self._url + path,
            body=body,
            headers={**self._headers, **headers},
            timeout=urllib3.Timeout(connect=_CONNECT, read=seconds),
        )


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _answer(method: str, path: str, response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        answer = orjson.loads(response.data)
    except ValueError:
        answer = None
    if response.status < 300 and isinstance(answer, dict):
        return answer
    problem = answer if isinstance(answer, dict) else {}
    detail = problem.get("detail") or response.reason or "no embedq service"
    where = path.partition("?")[0]
    raise ServiceError(f"{method} {where} answered {response.status}: {detail}", response.status)


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), 120.0) if value.isdigit() else 1.0
