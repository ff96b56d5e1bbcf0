"""A running service: the process of an image, in a namespace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.images.builder import Image, buildah, command
from tests.images.compose import Health, Service
from tests.images.network import Network

#: Seconds for a command in a container.
_COMMAND_S = 20.0


class Container:
    """A running service. Its output is in `log`."""

    def __init__(self, service: Service, image: Image, network: Network, folder: Path) -> None:
        """`folder`: for volumes and logs."""
        self.service = service
        self.image = image
        self.log = folder / f"{service.name}.log"
        self._network = network
        self._was_healthy = False
        self._id = buildah("from", "--pull-never", image.name)
        # Mounted here, so that all commands see it: they have mount namespaces of their own.
        self._root = Path(buildah("mount", self._id))
        self._volumes = [
            part
            for path, name in service.volumes.items()
            for part in ("--volume", f"{self._volume(folder / 'volumes' / name, path)}:{path}")
        ]
        with self.log.open("a") as output:
            self._process = subprocess.Popen(
                self._command(service.command or image.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C ends the containers in their order, not all at once.
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until_healthy(self) -> None:
        """Run the health check at its intervals. Raises AssertionError after its last retry."""
        if self._was_healthy:
            return
        health = self.service.health or self.image.health
        assert health is not None, f"{self.service.name} has no health check"
        print(f"  {self.service.name}: waiting for `{' '.join(health.command)}' ...", flush=True)
        began, failures = time.monotonic(), 0
        while not self._is_healthy(health):
            # Like Docker, ignore failures within the start period.
            failures += time.monotonic() - began > health.start
            assert failures < health.retries, f"{self.service.name} is unhealthy:\n{self.tail()}"
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(health.interval)
            assert self.running, f"{self.service.name} ended:\n{self.tail()}"
        self._was_healthy = True

    def run(self, *arguments: str, seconds: float = _COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, in addition to its process."""
        return subprocess.run(
            self._command(arguments),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def wait(self, seconds: float) -> int:
        """Wait for the process to end. Returns its exit status."""
        return self._process.wait(seconds)

    def stop(self) -> float:
        """Stop it like Docker, and remove it. Returns the duration in seconds.

        Raises AssertionError if it takes longer than its grace period, or ends with an error.
        """
        name, began = self.service.name, time.monotonic()
        os.kill(self._main_process(), getattr(signal, self.image.stop_signal))
        try:
            status = self._process.wait(self.service.grace)
        except subprocess.TimeoutExpired:
            late = f"{name} still runs {self.service.grace:.0f} s after {self.image.stop_signal}"
            raise AssertionError(f"{late}:\n{self.tail()}") from None
        assert status == 0, f"{name} ended with the status {status}:\n{self.tail()}"
        self.remove()
        return time.monotonic() - began

    def remove(self) -> None:
        """End it at once and remove it."""
        if self.running:
            for pid in self._family():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        subprocess.run(command("rm", self._id), capture_output=True, check=False)

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-3000:]

    def _is_healthy(self, health: Health) -> bool:
        try:
            return self.run(*health.command, seconds=health.timeout).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _command(self, arguments: Sequence[str]) -> list[str]:
        given = self.service.environment.items()
        environment = [part for key, value in given for part in ("--env", f"{key}={value}")]
        hosts = ["--no-hosts", "--volume", f"{self._network.hosts}:/etc/hosts:ro"]
        space = ["ip", "netns", "exec", self._network.space(self.service.name)]
        how = ["--isolation", "chroot", "--network", "host", *hosts, *self._volumes, *environment]
        return [*space, *command("run", *how, self._id, "--", *arguments)]

    def _volume(self, folder: Path, path: str) -> Path:
        """A volume's folder. Like in Docker, a new one has the owner of its path in the image."""
        if not folder.exists():
            folder.mkdir(parents=True)
            place = self._root / path.lstrip("/")
            assert place.is_dir(), f"{self.image.name} has no folder {path} for its volume"
            status = place.stat()
            os.chown(folder, status.st_uid, status.st_gid)
        return folder

    def _main_process(self) -> int:
        """The process that Docker would give the number 1: the first one that is not buildah's."""
        for pid in self._family():
            if "buildah" not in Path(f"/proc/{pid}/exe").readlink().name:
                return pid
        raise AssertionError(f"{self.service.name} has no process")

    def _family(self) -> list[int]:
        """The processes of the container, each after its parent."""
        pids = [self._process.pid]
        for pid in pids:
            with suppress(FileNotFoundError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (thread / "children").read_text().split())
        return pids
