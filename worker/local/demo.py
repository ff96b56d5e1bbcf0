"""The sample job: a few sentences over REST, and which of them are nearest to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot
from typing import TYPE_CHECKING

from worker.contract.errors import EmbedqError

if TYPE_CHECKING:
    from worker.offline.client import Remote

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


class DemoFailed(EmbedqError):
    """The sample job did not succeed; the message holds its state and error."""

    code = "demo_failed"


def run(remote: Remote, say: Callable[[str], None]) -> None:
    """Submit the sample job, wait for it, and show state, dimension and nearest neighbours.

    Raises `ServiceError` if the API answers with an error, and `DemoFailed` if the job fails.
    """
    job = remote.wait(remote.submit(SENTENCES)["id"])
    if job["status"] != "succeeded":
        raise DemoFailed(f"the sample job ended as {job['status']}: {job['error']}")
    outcome = remote.result(job["id"])
    say(f"Sample job {job['id']}")
    say(
        f"  state {job['status']}, model {outcome.model}, {len(SENTENCES)} texts, "
        f"dimension {outcome.vectors.shape[1]}, {outcome.prompt_tokens} tokens"
    )
    say("")
    for line in table(SENTENCES, outcome.vectors.tolist()):
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
    """Cosine of the angle between two vectors; 0 if the length of one is 0."""
    length = hypot(*first) * hypot(*second)
    return sum(a * b for a, b in zip(first, second, strict=True)) / length if length else 0.0
