"""Growth of memory, threads, descriptors and Redis clients over a hundred thousand requests.

`python -m bench.leak` starts Valkey, a worker with a costless model, and the API under
`gunicorn -k gevent` with our configuration. Callers send typical requests: jobs with and without a
wait, requests in OpenAI's form, polls, events, wrong bodies, and requests that they abort. After
each tenth all callers pause, and the benchmark inspects both processes.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson
import psutil
import redis

from bench.report import Options, Table, run
from bench.stage import stage
from tests.processes import START_TIMEOUT_S, Process, answers, eventually, start_api

REQUESTS = 100_000
CALLERS = 32
#: Requests of one connection, so that many connections open and close as well.
REQUESTS_A_CONNECTION = 20
MARKS = 10
#: Seconds without callers before an inspection: gunicorn closes idle connections after two.
SETTLE_S = 4
SEED = 7
#: Share of requests that the caller aborts before the answer.
HANG_UPS = 0.02

JSON = "Content-Type: application/json\r\n"


@dataclass
class Callers:
    """Callers of one API; `ids` are recent jobs, `statuses` counts answers by HTTP status."""

    host: str
    port: int
    chance: random.Random
    ids: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    hung_up: int = 0

    async def run(self, requests: int) -> None:
        """Send this number of requests over all callers, then close every connection."""
        shares = [requests // CALLERS + (at < requests % CALLERS) for at in range(CALLERS)]
        await asyncio.gather(*(self._call(share) for share in shares))

    async def _call(self, requests: int) -> None:
        while requests > 0:
            turn = min(requests, REQUESTS_A_CONNECTION)
            requests -= turn
            reader, writer = await asyncio.open_connection(self.host, self.port)
            for at in range(turn):
                writer.write(self._request())
                hangs_up = self.chance.random() < HANG_UPS
                self.hung_up += hangs_up
                if hangs_up or not await self._answer(reader):
                    # The rest of the turn goes over another connection.
                    requests += turn - 1 - at
                    break
            writer.close()
            await writer.wait_closed()

    def _request(self) -> bytes:
        job_id = self.chance.choice(self.ids) if self.ids else "unknown"
        method, path, body = self.chance.choices(
            (
                ("POST", "/jobs?wait=5", {"input": f"text {self.chance.random()}"}),
                ("POST", "/jobs", {"input": ["one", "another"], "encoding_format": "base64"}),
                (
                    "POST",
                    "/v1/embeddings",
                    {"model": "all-MiniLM-L6-v2", "input": "a text"},
                ),
                ("GET", f"/jobs/{job_id}", None),
                ("GET", f"/jobs/{job_id}?wait=1", None),
                ("GET", f"/jobs/{job_id}/events", None),
                ("DELETE", f"/jobs/{job_id}", None),
                ("POST", "/jobs", {"input": ["", 7], "no": "such option"}),
                ("GET", "/nothing", None),
                ("GET", "/readyz", None),
            ),
            weights=(30, 10, 15, 15, 5, 5, 3, 7, 5, 5),
        )[0]
        content = b"" if body is None else orjson.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{JSON if content else ''}"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    async def _answer(self, reader: asyncio.StreamReader) -> bool:
        """Read one answer; return False if the connection ended with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if b"content-length:" not in head:
            # Events are sent in chunks; the last chunk is empty.
            await reader.readuntil(b"\r\n0\r\n\r\n")
            return True
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if status in (200, 202) and body.startswith(b'{"id"'):
            self.ids.append(orjson.loads(body)["id"])
            del self.ids[:-1000]
        return b"connection: close" not in head


def main(options: Options) -> list[Table]:
    requests = REQUESTS // (20 if options.quick else 1)
    table = Table(
        f"What {requests:,} requests leave behind",
        ["requests", *_columns("API"), *_columns("worker"), "Redis clients"],
    )
    with stage(persistent=False) as processes, processes.valkey.client() as client:
        env = {"EMBEDQ_RESULT_TTL": "30"}
        worker = processes.worker(app="bench.costless", env=env)
        api = start_api(processes.processes, processes.url, "-c", "python:api.serving", env=env)
        eventually(lambda: answers(api, "/readyz"), START_TIMEOUT_S)
        parts = urlsplit(api.url)
        callers = Callers(parts.hostname or "", parts.port or 0, random.Random(SEED))
        asyncio.run(_measure(callers, requests, table, (api.process, worker), client))
    answered = ", ".join(f"{count:,} × {code}" for code, count in sorted(callers.statuses.items()))
    table.notes.append(f"answers: {answered}; hung up: {callers.hung_up:,}")
    assert not any(code in (500, 502, 504) for code in callers.statuses), callers.statuses
    return [table]


async def _measure(
    callers: Callers,
    requests: int,
    table: Table,
    watched: tuple[Process, Process],
    client: redis.Redis,
) -> None:
    for mark in range(1, MARKS + 1):
        await callers.run(requests // MARKS)
        await asyncio.sleep(SETTLE_S)
        clients = client.info("clients")["connected_clients"]
        looks = [cell for process in watched for cell in _look(process)]
        table.add(mark * requests // MARKS, *looks, clients)


def _columns(name: str) -> list[str]:
    return [f"{name} MiB", f"{name} threads", f"{name} descriptors"]


def _look(process: Process) -> tuple[float, int, int]:
    """Return resident MiB, threads and open descriptors of a process and its children."""
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    return (
        sum(one.memory_info().rss for one in family) / 2**20,
        sum(one.num_threads() for one in family),
        sum(one.num_fds() for one in family),
    )


if __name__ == "__main__":
    run("leak", main)
