"""The product's uses of other libraries beyond their documented interfaces.

Found in its sources, in four forms: private attributes of other objects, members of the libraries'
classes in classes derived from them, private names in `getattr`, and imports from undocumented
modules.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("worker", "api")
#: Modules with names that their library documents for its users, and Python's built-in modules.
DOCUMENTED = frozenset(
    {
        *("celery", "celery.exceptions", "celery.result", "celery.signals", "celery.states"),
        *("kombu", "kombu.exceptions"),
        *("redis", "redis.backoff", "redis.client", "redis.connection", "redis.exceptions"),
        *("redis.retry", "redis.sentinel"),
        *("torch", "torch.nn", "torch.nn.functional"),
        *("sentence_transformers", "sentence_transformers.base.modules"),
        *("sentence_transformers.sentence_transformer.modules", "huggingface_hub"),
        *("transformers", "tokenizers", "openvino", "nncf"),
    }
)
#: Libraries; imports of others are ignored.
LIBRARIES = frozenset(
    {
        *("billiard", "celery", "gevent", "gunicorn", "kombu", "redis", "torch", "vine"),
        *("huggingface_hub", "nncf", "openvino", "sentence_transformers", "tokenizers"),
        "transformers",
    }
)
#: Private by their underscore alone: methods of namedtuples, `os._exit`, and the method of Flask's
#: proxies that its documentation names for access to their objects.
PUBLIC = frozenset({"_asdict", "_exit", "_fields", "_get_current_object", "_make", "_replace"})


class Use(NamedTuple):
    """One use: the file, and the end of the name as the page has it."""

    path: str
    name: str


def private_uses() -> set[Use]:
    """Every use in the sources of the product."""
    found: set[Use] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = {*_of_other_objects(tree), *_imported(tree), *_inherited(path, tree)}
            found |= {Use(str(path.relative_to(ROOT)), name) for name in names}
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def _of_other_objects(tree: ast.Module) -> Iterator[str]:
    """Private attributes of anything but `self` and `cls` that this file does not itself define."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            is_own = ast.unparse(node.value) in ("self", "cls", "super()")
            if not (is_own or node.attr in own):
                yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and _is_private(str(name.value)):
                yield str(name.value)


def _imports(tree: ast.Module) -> dict[str, str]:
    """Names imported from undocumented modules, or private ones, with their full names."""
    found = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        root = node.module.partition(".")[0]
        undocumented = root in LIBRARIES and node.module not in DOCUMENTED
        for alias in node.names:
            private = any(_is_private(part) for part in (*node.module.split("."), alias.name))
            whole = f"{node.module}.{alias.name}"
            if (undocumented or private) and root not in PACKAGES and whole not in DOCUMENTED:
                found[alias.asname or alias.name] = whole
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names from modules that no library documents, private ones, and attributes of such names."""
    imports = _imports(tree)
    yield from imports.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whole = imports.get(node.value.id)
            if whole is not None and _is_module(whole):
                yield f"{whole}.{node.attr}"


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def _inherited(path: Path, tree: ast.Module) -> Iterator[str]:
    """Members of libraries' classes in classes derived from them.

    Private ones that a class defines or uses, and any that it replaces in an undocumented class.
    """
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    if not classes:
        return
    imports = _imports(tree)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in classes:
        undocumented = any(ast.unparse(base).partition(".")[0] in imports for base in node.bases)
        theirs: set[str] = set()
        for base in getattr(module, node.name).__mro__:
            if base.__module__.partition(".")[0] not in (*PACKAGES, *sys.stdlib_module_names):
                theirs |= members(base)
        for name, is_defined in _names_in(node):
            if name in theirs and (_is_private(name) or (undocumented and is_defined)):
                yield name


def _names_in(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """Names that a class uses; each with whether the class defines it."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.ClassDef) and not member.name.startswith("__"):
            yield member.name, True
        targets = member.targets if isinstance(member, ast.Assign) else []
        for target in (*targets, *([member.target] if isinstance(member, ast.AnnAssign) else [])):
            yield ast.unparse(target), True
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            yield (
                inner.attr,
                isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self",
            )


@cache
def members(cls: type[Any]) -> frozenset[str]:
    """The names in the source of a class: its methods, attributes, and attributes of `self`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return frozenset(vars(cls))
    names = set(vars(cls))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            hidden = node.attr.startswith("__") and not node.attr.endswith("__")
            names.add(f"_{cls.__name__}{node.attr}" if hidden else node.attr)
    return frozenset(names)
