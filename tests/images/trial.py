"""The checks of the running services: start, calls, a stop under load, and the GPU's file."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.images import builder
from tests.images.builder import Image
from tests.images.compose import COMPOSE, GPU, Service, services
from tests.images.container import Container
from tests.images.network import Network
from tests.readme import ADDRESS, blocks, rest_examples

#: Bytes that the API may add to its base image.
MOST_API_BYTES = 140e6
#: Jobs, and texts of each, that a worker has when it is stopped.
_JOBS, _TEXTS = 60, 64
#: Seconds for a request, for a README's example, and for the jobs of the stopped worker.
_REQUEST_S, _EXAMPLE_S, _JOBS_S = 30.0, 60.0, 180.0


class Trial:
    """The services, each in a container. `close` removes all of them."""

    def __init__(self, images: Mapping[str, Image], folder: Path) -> None:
        """`images` of each service."""
        self._services = services(os.environ)
        self._images = images
        self._folder = folder
        self._network = Network([*self._services], folder)
        self._running: dict[str, Container] = {}
        ((self._published, _),) = self._services["api"].ports.items()
        self._address = "http://{}:{}".format(*self._published)

    def run(self) -> None:
        """Run all checks. Raises AssertionError with the output of the failed service."""
        self._network.open()
        for service in self._services.values():
            self._start(service)
            for at, port in service.ports.items():
                self._network.publish(at, service.name, port)
        for container in self._running.values():
            container.wait_until_healthy()
        self._check_users()
        self._call_over_rest()
        self._call_over_celery()
        self._stop_a_worker_at_work()
        self._start_on_a_gpu()
        for name in reversed(self._services):
            print(f"  {name}: stopped in {self._stop(name):.1f} s")

    def close(self) -> None:
        """Remove containers and namespaces, at once."""
        for container in self._running.values():
            container.remove()
        self._network.close()

    # -- checks -----------------------------------------------------------------------------

    def _check_users(self) -> None:
        for name in ("api", "worker"):
            container = self._running[name]
            found = container.run("sh", "-c", "id -u; command -v cc gcc c++ g++ clang || true")
            lines = found.stdout.split()
            assert lines[0] != "0", f"{name} runs as root"
            assert not lines[1:], f"the image of {name} has a compiler: {lines[1:]}"
        found = self._running["api"].run("python", "-c", "import torch")
        assert "No module named 'torch'" in found.stderr, "the API's image has torch"
        print("  no service runs as root, none has a compiler, the API has no torch")

    def _call_over_rest(self) -> None:
        for example in rest_examples():
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", example.replace(ADDRESS, self._address)],
                cwd=self._folder,
                capture_output=True,
                text=True,
                timeout=_EXAMPLE_S,
                check=False,
            )
            assert done.returncode == 0, f"{example}\n{done.stderr}{self._running['api'].tail()}"
            assert '"status":"succeeded"' in done.stdout, f"{example}\n{done.stdout[-2000:]}"
        print(f"  {len(rest_examples())} examples of the README over REST")

    def _call_over_celery(self) -> None:
        (example,) = (block for block in blocks("python") if "embed.delay(" in block)
        done = self._running["api"].run("python", "-c", example, seconds=_EXAMPLE_S)
        assert done.returncode == 0, f"{example}\n{done.stderr}{self._running['worker'].tail()}"
        print(f"  the README's example over Celery: {done.stdout.strip()}")

    def _stop_a_worker_at_work(self) -> None:
        texts = [f"text {number} of a job that is under way" for number in range(_TEXTS)]
        ids = [self._ask("/jobs", {"input": texts})["id"] for _ in range(_JOBS)]
        self._wait_for(ids[0])
        took = self._stop("worker")
        left = sum(self._ask(f"/jobs/{one}")["status"] != "succeeded" for one in ids)
        assert left, f"all {_JOBS} jobs had ended before the worker was stopped"
        print(f"  worker: stopped in {took:.1f} s with {left} of {_JOBS} jobs left", flush=True)
        self._start(self._services["worker"])
        for one in ids:
            self._wait_for(one)
        self._running["worker"].wait_until_healthy()
        print(f"  its successor completed them: {_JOBS} of {_JOBS} succeeded")

    def _start_on_a_gpu(self) -> None:
        """Without the device the worker must end with an error that names it."""
        worker = services(os.environ, COMPOSE, GPU)["worker"]
        container = Container(worker, self._images["worker"], self._network, self._folder)
        try:
            status = container.wait(_EXAMPLE_S)
        finally:
            container.remove()
        device = worker.environment["EMBEDQ_DEVICE"]
        said = container.tail()
        assert status, f"a worker with EMBEDQ_DEVICE={device} ran without one"
        errors = [line for line in said.splitlines() if device in line]
        assert errors, f"the error does not name the device:\n{said}"
        print(f"  {GPU.name}: up to the device: {errors[-1]}")

    # -- how --------------------------------------------------------------------------------

    def _start(self, service: Service) -> None:
        for name in service.after:
            self._running[name].wait_until_healthy()
        image = self._images[service.name]
        self._running[service.name] = Container(service, image, self._network, self._folder)

    def _stop(self, name: str) -> float:
        took = self._running[name].stop()
        del self._running[name]
        return took

    def _ask(self, path: str, body: object = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _wait_for(self, job: str) -> None:
        deadline = time.monotonic() + _JOBS_S
        while (status := self._ask(f"/jobs/{job}?wait=10")["status"]) != "succeeded":
            assert status in ("queued", "running"), f"the job {job} is {status}"
            assert time.monotonic() < deadline, f"the job {job} was lost: it is {status}"


def build() -> dict[str, Image]:
    """Build the image of each service, and check the size of the API's."""
    images = {}
    for service in services(os.environ).values():
        if service.dockerfile is None:
            assert service.image is not None, f"{service.name} has neither image nor build"
            full = builder.full_name(service.image)
            builder.make_base(full)
            images[service.name] = builder.inspect(full)
        else:
            name = f"localhost/embedq-{service.name}:latest"
            images[service.name] = builder.build(name, service.dockerfile, service.arguments)
            (base,) = builder.bases(service.dockerfile)
            image = images[service.name]
            added = image.size - builder.size(base)
            print(f"  {image.size / 1e6:,.0f} MB, {added / 1e6:,.0f} MB above {base}")
            assert service.name != "api" or added <= MOST_API_BYTES, (
                f"the API adds {added / 1e6:.0f} MB to its base, {MOST_API_BYTES / 1e6:.0f} allowed"
            )
    return images
