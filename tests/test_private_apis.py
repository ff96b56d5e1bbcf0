"""docs/private-apis.md lists the used internals of other libraries, all of them present."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
import torch
from celery import Celery
from celery.app import trace
from celery.utils import log as celery_log
from celery.worker.request import Request, create_request_cls
from gunicorn import config as gunicorn_config
from gunicorn.http.wsgi import default_environ
from kombu.asynchronous import Hub

from api import serving
from tests.private_uses import ROOT, members, private_uses

PAGE = ROOT / "docs" / "private-apis.md"


class Row(NamedTuple):
    """One row of the page's tables of names."""

    of: str
    #: Each with its parameters, if it states any.
    names: list[str]
    places: list[str]
    tests: list[str]


def rows() -> list[Row]:
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    quoted = [
        [re.findall(r"`([^`]+)`", cell) for cell in line]
        for line in lines
        if len(line) == 5 and line[0].startswith("`")
    ]
    return [Row(of[0], names, places, tests) for of, names, places, _, tests in quoted]


def plain(name: str) -> str:
    return name.partition("(")[0]


def resolved(of: str) -> Any:
    """The module, class or namespace of a row."""
    try:
        return importlib.import_module(of)
    except ModuleNotFoundError:
        parent, _, last = of.rpartition(".")
        return getattr(resolved(parent), last)


def stated() -> set[str]:
    """Every name on the page, also in full."""
    found = set()
    for row in rows():
        found |= {row.of, row.of.rpartition(".")[0]}
        for name in map(plain, row.names):
            found |= {name, f"{row.of}.{name}"}
    return found


@pytest.mark.slow
def test_every_private_use_is_on_the_page() -> None:
    known = stated()
    missing = sorted(f"{use.path}: {use.name}" for use in private_uses() if use.name not in known)
    assert not missing, "add these uses to docs/private-apis.md, with a test of what they do:\n" + (
        "\n".join(missing)
    )


@pytest.mark.parametrize(
    ("of", "name"),
    [(row.of, name) for row in rows() for name in row.names],
    ids=lambda value: value.partition("(")[0],
)
def test_every_name_on_the_page_exists_as_stated(of: str, name: str) -> None:
    owner = resolved(of)
    is_there = hasattr(owner, plain(name)) or plain(name) in attributes(owner)
    assert is_there, f"{of} has no {plain(name)} any more"
    if "(" not in name:
        return
    assert hasattr(owner, plain(name)), "state no parameters of what only instances have"
    wanted = [part.lstrip("*") for part in re.findall(r"[*\w…]+", name.partition("(")[2])]
    given = list(inspect.signature(getattr(owner, plain(name))).parameters)
    given = given[1:] if given[:1] == ["self"] else given
    if wanted and wanted[-1] == "…":
        wanted.pop()
        given = given[: len(wanted)]
    assert given == wanted, f"{of}.{plain(name)} takes other parameters now"


def attributes(owner: Any) -> set[str]:
    """Names that the methods of a class give to `self`."""
    if not inspect.isclass(owner):
        return set()
    return set().union(*(members(cls) for cls in owner.__mro__ if cls is not object))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.of)
def test_every_row_is_used_where_it_says_and_names_a_test(row: Row) -> None:
    sources = "\n".join(source for place in row.places for source in sources_in(ROOT / place))
    unused = [name for name in map(plain, row.names) if not re.search(rf"\b{name}\b", sources)]
    assert not unused, f"{row.places} does not use {unused}: remove them from docs/private-apis.md"
    assert row.tests
    for test in row.tests:
        check_test(test)


def test_the_tests_of_formats_and_behaviour_exist() -> None:
    undocumented = PAGE.read_text().partition("## Formats and behaviour")[2]
    for test in re.findall(r"`(\S+\.py\S*)`", undocumented):
        check_test(test)


def sources_in(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        yield path.read_text()


def check_test(name: str) -> None:
    """Fail unless a test of this name, or a file of tests, is there."""
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in functions


@pytest.fixture
def app() -> Iterator[Celery]:
    """An application of its own, with results in memory."""
    app = Celery("private", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


def test_a_request_gives_the_pool_its_own_methods(app: Celery) -> None:
    @app.task(name="one")
    def one() -> None:
        """Never run."""

    app.finalize()
    handed: dict[str, Any] = {}
    pool = SimpleNamespace(apply_async=lambda _, **options: handed.update(options))
    request_class = create_request_cls(Request, app.tasks["one"], pool, "here", None, app=app)
    message = SimpleNamespace(
        headers={"id": "1", "task": "one", "timelimit": [None, None]},
        properties={},
        delivery_info={},
        body="[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        payload=[[], {}, {}],
    )
    request = request_class(message, app=app, task=app.tasks["one"], hostname="here")
    request.execute_using_pool(pool)
    for name in ("callback", "accept_callback"):
        assert handed[name].__self__ is request, f"{name} is no method of the request any more"
    assert handed["args"][:3] == ("one", "1", request.request_dict)


def test_the_tracer_answers_with_failure_result_and_runtime(app: Celery) -> None:
    @app.task(name="double")
    def double(number: int) -> int:
        return 2 * number

    app.finalize()
    task = app.tasks["double"]
    task.__trace__ = trace.build_tracer(task.name, task, app=app)
    request = {"id": "1", "task": "double", "is_eager": False, "hostname": "here"}
    arguments = ("1", request, "[[3], {}, {}]", "application/json", "utf-8")
    failed, result, runtime = trace.trace_task_ret("double", *arguments, app=app)
    assert (failed, result) == (0, "6")
    assert runtime >= 0
    failed, _, _ = trace.trace_task_ret(
        "double", "2", request, "[[], {}, {}]", *arguments[3:], app=app
    )
    assert failed == 1


def test_celery_tells_when_a_signal_handler_runs() -> None:
    assert celery_log._in_sighandler is False
    with celery_log.in_sighandler():
        assert celery_log._in_sighandler is True
    assert celery_log._in_sighandler is False


def test_a_loop_shows_its_callbacks_and_timers() -> None:
    loop = Hub()
    assert isinstance(loop.on_tick, set)
    entry = loop.call_repeatedly(60, print)
    assert {scheduled.entry for scheduled in loop.timer.queue} == {entry}
    entry.cancel()
    loop.close()


def test_a_connection_is_read_reply_by_reply(redis_url: str) -> None:
    connection = redis.ConnectionPool.from_url(redis_url).make_connection()
    connection.connect()
    assert isinstance(connection._sock, socket.socket)
    for command in (("PING",), ("NONSENSE",), ("ECHO", "two")):
        connection.send_command(*command, check_health=False)
    assert connection.can_read(timeout=10)
    assert connection.read_response(disconnect_on_error=False) == b"PONG"
    with pytest.raises(redis.ResponseError):
        connection.read_response(disconnect_on_error=False)
    assert connection.can_read(timeout=10), "a reply that the parser holds is not announced"
    assert connection.read_response(disconnect_on_error=False) == b"two"
    assert not connection.can_read(timeout=0)
    connection.disconnect()
    assert connection._sock is None


def test_gunicorns_settings_become_attributes() -> None:
    stock, frozen = gunicorn_config.Config(), gunicorn_config.Config()
    serving._freeze(frozen)
    for name in stock.settings:
        assert getattr(frozen, name) == getattr(stock, name), name
    assert vars(frozen)["keepalive"] == stock.keepalive


def test_gunicorn_takes_every_setting() -> None:
    known = {setting.name for setting in gunicorn_config.KNOWN_SETTINGS}
    ours = {
        name
        for name, value in vars(serving).items()
        if name.islower() and not name.startswith("_") and not inspect.ismodule(value)
    }
    assert ours - {"annotations"} <= known
    assert "control_socket_disable" in ours


def test_gunicorn_shows_the_connection() -> None:
    request = SimpleNamespace(
        body=None, method="GET", query="", uri="/?one", version=(1, 1), headers=[], path="/"
    )
    connection = socket.socket()
    with connection:
        environment = default_environ(request, connection, gunicorn_config.Config())
        assert environment["gunicorn.socket"] is connection
        assert environment["RAW_URI"] == "/?one"


def test_gunicorns_workers_have_a_handler_of_sigterm_that_can_be_called() -> None:
    from gunicorn.workers.base import Worker

    assert signal.SIGTERM in Worker.SIGNALS
    assert callable(Worker.handle_exit)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this torch has no oneDNN",
)
def test_one_kernel_computes_a_linear_layer_with_what_follows_it() -> None:
    torch.manual_seed(1)
    rows_, others, weight, bias = (torch.randn(size) for size in ((5, 8), (5, 4), (4, 8), (4,)))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise
    linear = torch.nn.functional.linear(rows_, weight, bias)
    expected = {
        "none": linear,
        "gelu": torch.nn.functional.gelu(linear),
    }
    for after, value in expected.items():
        torch.testing.assert_close(run(rows_, packed, bias, after, [], "none"), value)
    torch.testing.assert_close(run.binary(rows_, others, packed, bias, "add"), linear + others)
