"""`python -m tests.clients` (`make clients`): OpenAI's clients get the vectors the library gives.

Makes an environment for each client in `.venv/clients`, once; starts `embedq up` without and with
a token table, and runs each client against it. Exits 1 if a client gets another result.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import running
from tests.processes import ROOT, Processes, clean_environment
from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME
from worker.encoder.reference import Reference

HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv" / "clients"
SERVES = "embedq serves on"
#: Seconds for `embedq up` to serve, and for one client.
START_S, CLIENT_S = 120.0, 180.0
TOLERANCE = 1e-5
TEXTS = [
    "a photo of a cat",
    "ein Foto einer Katze",
    "naïve 🙂 café",
    "word " * 400,
    *(f"sentence number {number}" for number in range(30)),
]
#: LangChain and others read the table of token ids from this file; litellm's package includes it.
TABLE = "litellm/litellm_core_utils/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


@dataclass(frozen=True)
class Client:
    """A program of this folder, its requirements, and the server's mode for it.

    `refused`: text of the server's error if the client cannot be served.
    """

    name: str
    program: str
    requirement: str
    arguments: Sequence[str] = ()
    texts: Sequence[str] = (*TEXTS, "")
    with_table: bool = False
    refused: str = ""


CLIENTS = (
    Client("openai 3", "with_openai.py", "openai>=3,<4"),
    Client("openai 2", "with_openai.py", "openai>=2,<3"),
    Client("LangChain, unchecked", "with_langchain.py", "langchain-openai", ["unchecked"]),
    Client(
        "LangChain, without a table",
        "with_langchain.py",
        "langchain-openai",
        ["checked"],
        refused="check_embedding_ctx_length=False",
    ),
    Client(
        "LangChain, with a table",
        "with_langchain.py",
        "langchain-openai",
        ["checked"],
        with_table=True,
    ),
    # The previous major versions.
    Client("LangChain 0, unchecked", "with_langchain.py", "langchain-openai<1", ["unchecked"]),
    Client(
        "LangChain 0, with a table",
        "with_langchain.py",
        "langchain-openai<1",
        ["checked"],
        with_table=True,
    ),
    Client("Haystack 2", "with_haystack.py", "haystack-ai<3"),
    Client("llama-index", "with_llama_index.py", "llama-index-embeddings-openai"),
    Client("litellm", "with_litellm.py", "litellm"),
    Client("Haystack", "with_haystack.py", "haystack-ai"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of clients' names; all by default")
    wanted = [name.lower() for name in parser.parse_args().names]
    clients = [
        one for one in CLIENTS if not wanted or any(name in one.name.lower() for name in wanted)
    ]
    for requirement in sorted({one.requirement for one in clients} | {"litellm"}):
        make_environment(requirement)
    table = next(environment("litellm").glob(f"lib/*/site-packages/{TABLE}"))
    reference = Reference(ModelSpec(DEFAULT_MODEL_NAME), device="cpu")
    vectors = dict(zip([*TEXTS, ""], reference.encode_alone([*TEXTS, ""]), strict=True))
    rows = []
    with running() as processes:
        for with_table in (False, True):
            chosen = [one for one in clients if one.with_table is with_table]
            if chosen:
                with serving(processes, table if with_table else None) as url:
                    for client in chosen:
                        expected = np.stack([vectors[text] for text in client.texts])
                        rows.append((client, *check(client, url, table, expected)))
    print(f"\n{'client':28} {'versions':52} outcome")
    for client, good, versions, outcome in rows:
        print(f"{client.name:28} {versions:52} {'' if good else 'NO: '}{outcome}")
    return int(not all(good for _, good, *_ in rows))


def environment(requirement: str) -> Path:
    """The folder of a client's virtual environment."""
    return ENVIRONMENTS / re.sub(r"[^\w.]+", "-", requirement)


def make_environment(requirement: str) -> None:
    """Make a virtual environment with a client's requirements, unless there is one."""
    folder = environment(requirement)
    done = folder / "installed"
    if done.exists():
        return
    print(f"Installing {requirement} into {folder.relative_to(ROOT)}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-input"]
    subprocess.run([*pip, "--disable-pip-version-check", requirement], check=True, timeout=900)
    done.touch()


@contextmanager
def serving(processes: Processes, table: Path | None) -> Iterator[str]:
    """The address of a new `embedq up`."""
    code = "from worker.cli import main; main(prog_name='embedq')"
    data = processes.folder / f"data{len(processes.started)}"
    up = processes.python(
        *("-c", code, "up", "--port", "0", "--data-dir", str(data)),
        name="up",
        env={"EMBEDQ_TOKEN_TABLE": str(table) if table else None},
    )
    up.wait_for_log(SERVES, START_S)
    match = re.search(rf"{SERVES} (\S+)", up.log())
    assert match
    yield match[1].rstrip("/")
    up.stop()


def check(
    client: Client, url: str, table: Path, expected: NDArray[np.float32]
) -> tuple[bool, str, str]:
    """Whether the client's result is right, its versions, and a description of the result."""
    done = subprocess.run(
        [
            str(environment(client.requirement) / "bin" / "python"),
            str(HERE / client.program),
            f"{url}/v1",
            DEFAULT_MODEL_NAME,
            *client.arguments,
        ],
        input=json.dumps(client.texts),
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
        check=False,
        cwd=ROOT,
        env=clean_environment(
            PYTHONPATH=None, TIKTOKEN_CACHE_DIR=str(table.parent), OPENAI_API_KEY="none"
        ),
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return False, "", f"exit {done.returncode}: {done.stderr[-2000:]}"
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    if "error" in answer:
        good = bool(client.refused) and client.refused in answer["error"]
        return good, versions, answer["error"][:300]
    vectors = np.asarray(answer["vectors"], np.float32)
    if vectors.shape != expected.shape:
        return False, versions, f"vectors of shape {vectors.shape}, not {expected.shape}"
    difference = float(np.abs(vectors - expected).max())
    good = not client.refused and difference <= TOLERANCE
    return good, versions, f"{len(vectors)} vectors, at most {difference:.1e} from the library's"


if __name__ == "__main__":
    sys.exit(main())
