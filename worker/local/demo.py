"""The sample job: a few sentences over REST, and which of them are nearest to each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from math import hypot
from typing import Any

from worker.contract.errors import EmbedqError

SENTENCES = (
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "The parcel arrived two days late.",
    "My delivery still has not come.",
    "Which restaurants nearby serve vegan food?",
    "Is there a place to eat without meat around here?",
    "The striker scored twice in the final.",
    "Our team won the cup after extra time.",
)
#: Seconds that one request waits for the job's end.
WAIT_S = 30


class DemoFailed(EmbedqError):
    """The sample job did not end as it should; the message holds the API's answer."""

    code = "demo_failed"


def run(host: str, port: int, say: Callable[[str], None], api_key: str | None = None) -> None:
    """Submit the sample job, wait for it, and show state, dimension and nearest neighbours.

    Raises `DemoFailed` where the API answers with an error or the job fails.
    """
    connection = HTTPConnection(host, port, timeout=2 * WAIT_S)
    ask = partial(_request, connection, api_key)
    try:
        job = ask("POST", f"/jobs?wait={WAIT_S}", {"input": SENTENCES})
        while job["status"] in ("queued", "running"):
            job = ask("GET", f"/jobs/{job['id']}?wait={WAIT_S}")
        if job["status"] != "succeeded":
            raise DemoFailed(f"the sample job ended as {job['status']}: {job['error']}")
        result = ask("GET", f"/jobs/{job['id']}/result")
    finally:
        connection.close()
    say(f"Sample job {job['id']}")
    say(
        f"  state {job['status']}, model {result['model']}, {len(SENTENCES)} texts, "
        f"dimension {result['dimensions']}, {result['usage']['total_tokens']} tokens"
    )
    say("")
    for line in table(SENTENCES, result["embeddings"]):
        say("  " + line)


def table(texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[str]:
    """Lines of a table: each text, its nearest other text, and the cosine of the two."""
    rows = []
    for index, text in enumerate(texts):
        others = [other for other in range(len(texts)) if other != index]
        nearest = max(others, key=lambda other: cosine(vectors[index], vectors[other]))
        rows.append((text, texts[nearest], f"{cosine(vectors[index], vectors[nearest]):.2f}"))
    title = "nearest other text"
    width = max(len(title), *map(len, texts))
    header = (f"{'text':<{width}}", f"{title:<{width}}", "cosine")
    lines = ["  ".join(header), "  ".join("-" * len(cell) for cell in header)]
    lines += [f"{text:<{width}}  {other:<{width}}  {value:>6}" for text, other, value in rows]
    return lines


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 where one has no length."""
    length = hypot(*first) * hypot(*second)
    return sum(a * b for a, b in zip(first, second, strict=True)) / length if length else 0.0


def _request(
    connection: HTTPConnection, api_key: str | None, method: str, path: str, body: object = None
) -> dict[str, Any]:
    """Send JSON, read JSON; any answer but a 2xx raises `DemoFailed`."""
    data = None if body is None else json.dumps(body)
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    if response.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise DemoFailed(f"{method} {path} answered {response.status}: {text[:500]}")
    answer: dict[str, Any] = json.loads(text)
    return answer
