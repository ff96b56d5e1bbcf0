"""The test tools themselves: a real Valkey that survives kills, processes that end with pytest."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.processes import Processes, ValkeyServer, alive, eventually

#: A program that starts a child which ignores SIGTERM, prints both ids, and waits.
PARENT = """
import sys, time
from worker.local.children import Children
children = Children(grace_s=0.3)
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\\n"
child = children.start([sys.executable, "-c", stubborn + "time.sleep(60)"])
print("pids", children.guardian.pid, child.pid, flush=True)
time.sleep(60)
"""

#: A program that prints its environment, and exits as its argument says.
PROGRAM = """
import os, signal, sys
print(os.environ["WORD"], os.getcwd(), os.getsid(0), "worker" in sys.modules, flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""


def test_a_restarted_valkey_has_its_data(valkey_server: Callable[..., ValkeyServer]) -> None:
    server = valkey_server()
    with server.client() as client:
        client.set("kept", "yes")
        server.restart()
        assert client.get("kept") == b"yes"


def test_redis_url_is_empty_for_each_test(redis_client: redis.Redis) -> None:
    assert redis_client.dbsize() == 0
    redis_client.set("left", "behind")


test_redis_url_is_empty_for_each_test_again = test_redis_url_is_empty_for_each_test


def test_the_socket_address_reaches_the_same_server(valkey: ValkeyServer) -> None:
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_a_parent_that_is_killed(
    processes: Processes, number: signal.Signals
) -> None:
    parent = processes.python("-c", PARENT, name="parent")
    parent.wait_for_log("pids ")
    parent.wait_for_log("up")
    line = next(line for line in parent.log().splitlines() if line.startswith("pids "))
    pids = [int(word) for word in line.split()[1:]]
    assert all(alive(pid) for pid in pids)

    parent.signal(number)
    parent.wait()

    eventually(lambda: not any(alive(pid) for pid in pids), 10)


@pytest.mark.parametrize(("argument", "code"), [("leave", 3), ("kill", -signal.SIGKILL)])
def test_a_program_of_the_fork_server_is_like_one_that_was_started(
    processes: Processes, tmp_path: Path, argument: str, code: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)

    process = processes.module(
        *("program", argument), name="program", env={"WORD": "a word"}, cwd=tmp_path
    )
    status = process.wait(60)

    assert status == code
    assert process.log().splitlines() == [f"a word {tmp_path} {process.pid} False"]
    assert not process.running


def test_a_child_killed_before_it_announced_itself_is_no_harm(processes: Processes) -> None:
    child = processes.start([sys.executable, "-c", "pass"])
    child.kill()
    assert not child.running
