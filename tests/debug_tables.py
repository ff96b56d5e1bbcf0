"""The tables of docs/debugging.md, from the sources: `python -m tests.debug_tables` rewrites them.

Each leads from a name that an operator sees (a metric, an error code, a Redis key) to the functions
that contain it. A string constant in the source is the link, so a table cannot name a function that
does not use it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from api.errors import STATUS_OF
from worker.contract import keys
from worker.metrics.registry import METRICS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "debugging.md"
OPERATIONS = ROOT / "docs" / "operations.md"
#: Files that declare the names, but do not use them.
_DECLARATIONS = {
    "worker/metrics/registry.py",
    "worker/contract/keys.py",
    "api/errors.py",
    "api/dialects/openai/errors.py",
}

Uses = Mapping[str, list[str]]


def tables() -> dict[str, str]:
    """The tables in Markdown, by the name of their place in the page."""
    counted, raised, calls = _strings(_counts), _strings(_raises), _calls_of_keys()
    return {
        "metrics": _table(
            ("metric", "counted in"),
            ((f"embedq_{name}", counted[name]) for name in sorted(_metrics())),
        ),
        "codes": _table(
            ("code", "status", "raised in"),
            (
                (code, _status(code), raised[code] or ["`api/errors.py`"])
                for code in sorted(_codes())
            ),
        ),
        "keys": _table(
            ("key", "type and content", "used in"),
            ((pattern, text, calls[name]) for name, pattern, text in _keys()),
        ),
    }


def page(text: str) -> str:
    """The page with its tables replaced by the present ones."""
    for name, table in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
    return text


def _metrics() -> set[str]:
    """Names of all metrics, without `embedq_` and `_total`, as docs/operations.md lists them."""
    listed = re.findall(r"^\| `embedq_(\w+?)(?:_total)?` \|", OPERATIONS.read_text(), re.MULTILINE)
    return {*METRICS, *listed}


def _codes() -> set[str]:
    """All error codes: of requests, of jobs and of texts."""
    of_classes = {
        one.value.value
        for _, _, node in _nodes()
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, ast.Assign)
        and ast.unparse(one.targets[0]) == "code"
        and isinstance(one.value, ast.Constant)
    }
    return {*STATUS_OF, *of_classes, "poisoned", "text_too_long", "non_finite_vector", "time_limit"}


def _status(code: str) -> str:
    return str(STATUS_OF[code].value) if code in STATUS_OF else ""


def _keys() -> Iterator[tuple[str, str, str]]:
    """Every key: the name in `keys`, its pattern, and the first sentence of its docstring."""
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        if function.__module__ != keys.__name__ or name.startswith("_") or name == "with_shared":
            continue
        parameters = inspect.signature(function).parameters
        pattern = function(*(f"<{one}>" for one in parameters))
        yield name, pattern, (inspect.getdoc(function) or "").partition("\n")[0]


def _strings(is_use: Callable[[str, ast.AST], Iterable[ast.expr | None]]) -> Uses:
    """Functions by the string constants in their uses; metrics without `embedq_`."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, place, node in _nodes():
        for value in is_use(file, node):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[value.value.removeprefix("embedq_")].append(place)
    return found


def _counts(file: str, node: ast.AST) -> Iterable[ast.expr | None]:
    """Names of metrics: arguments of calls and keys of dictionaries, in files that count."""
    if not file.startswith(
        ("worker/engine/", "worker/pool/", "api/metrics.py", "api/worker_metrics.py")
    ):
        return ()
    if isinstance(node, ast.Call):
        return node.args
    return node.keys if isinstance(node, ast.Dict) else ()


def _raises(_: str, node: ast.AST) -> Iterable[ast.expr | None]:
    """Codes of errors: arguments of calls, elements of tuples, and `code = …`."""
    match node:
        case ast.Call():
            return [*node.args, *(one.value for one in node.keywords)]
        case ast.Tuple():
            return node.elts
        case ast.Assign():
            return [node.value]
        case ast.Dict():
            return node.values
        case _:
            return ()


def _calls_of_keys() -> Uses:
    """Functions by the functions of `keys` that they call."""
    found: dict[str, list[str]] = defaultdict(list)
    for _, place, node in _nodes():
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "keys"
        ):
            found[node.attr].append(place)
    return found


def _nodes() -> Iterator[tuple[str, str, ast.AST]]:
    """Every node of the product's sources, with its file, and with its class or function."""
    for package in ("api", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if file in _DECLARATIONS:
                continue
            for top in ast.parse(path.read_text()).body:
                name = getattr(top, "name", "")
                place = f"`{file}`" + (f" `{name}`" if name else "")
                for node in ast.walk(top):
                    yield file, place, node


def _table(head: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, *middle, places in rows:
        assert isinstance(places, list)
        where = ", ".join(dict.fromkeys(places)) or "–"
        lines.append("| " + " | ".join([f"`{name}`", *map(str, middle), where]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
