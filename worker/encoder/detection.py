"""Detection of a model's kind from the files of its checkpoint, before any weight is loaded.

sentence-transformers opens a checkpoint of any kind as a dense model: it drops the modules and
heads of the other kinds and takes the mean of the tokens. Such vectors look correct and are
useless. A comparison with the library does not show it, since the library converts in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from worker.encoder.kinds import Kind, kinds

#: Returns the JSON value in a file of the checkpoint, None if the file does not exist.
Read = Callable[[str], Any]

#: Heads of several purposes, at the end of an architecture's name.
_UNKNOWN = (
    r".*(For(CausalLM|ConditionalGeneration|MultipleChoice|NextSentencePrediction|PreTraining"
    r"|QuestionAnswering|TokenClassification)|LMHeadModel)"
)


class DetectedKind(NamedTuple):
    """The kind of a model, None if it is unknown, and the entry in its files that states it."""

    kind: Kind | None
    evidence: str
    #: Whether the checkpoint lacks the files of sentence-transformers, which state the pooling.
    bare: bool = False


def detect(read: Read) -> DetectedKind:
    """Return the kind of the checkpoint with the files of `read`."""
    settings = read("config_sentence_transformers.json") or {}
    stated = settings.get("model_type", "SentenceTransformer")
    if stated != "SentenceTransformer":
        evidence = f"config_sentence_transformers.json has the model_type {stated!r}"
        return DetectedKind(_first(lambda kind: stated in kind.model_types), evidence)
    modules = read("modules.json")
    return _by_architecture(read) if modules is None else _by_modules(modules, read)


def objection(detected: DetectedKind) -> str | None:
    """Return the reason why this kind of model does not run, in one line; None if it runs."""
    kind = detected.kind
    if kind is not None and kind.head is not None:
        return None
    hint = "embedq runs dense models, which give one vector for each text"
    if detected.bare:
        hint += "; if this is one, save it with its pooling as docs/models.md describes"
    description = "of an unknown kind" if kind is None else kind.description
    return f"is {description}: {detected.evidence}; {hint}"


def _by_modules(modules: list[dict[str, str]], read: Read) -> DetectedKind:
    for module in modules:
        kind = _matching("modules", module["type"])
        if kind is not None:
            return DetectedKind(kind, f"modules.json has the module {module['type']}")
    names = [module["type"].rpartition(".")[2] for module in modules]
    if names[:1] != ["Transformer"] or "Pooling" in names:
        return DetectedKind(kinds()["dense"], "modules.json has the modules of a dense model")
    path = f"{modules[0]['path']}/sentence_bert_config.json".lstrip("/")
    return _by_task(path, read(path) or {})


def _by_task(path: str, settings: dict[str, Any]) -> DetectedKind:
    """Return the kind of a transformer without pooling."""
    task = settings.get("transformer_task")
    if kind := _first(lambda kind: task in kind.tasks):
        return DetectedKind(kind, f"{path} has the transformer_task {task!r}")
    if settings.get("module_output_name", "token_embeddings") == "token_embeddings":
        return DetectedKind(kinds()["multi_vector"], "modules.json has no module Pooling")
    return DetectedKind(kinds()["dense"], f"{path} has a module_output_name for whole texts")


def _by_architecture(read: Read) -> DetectedKind:
    """Return the kind of a checkpoint of transformers; without a head it counts as dense."""
    if read("1_Pooling/config.json") is not None:
        # An incomplete copy: without modules.json the library takes the mean.
        return DetectedKind(None, "1_Pooling is there, and modules.json, which names it, is not")
    dense, config = kinds()["dense"], read("config.json")
    if config is None:
        return DetectedKind(dense, "there is no config.json; the library names the missing files")
    for name in config.get("architectures") or ():
        kind = _matching("architectures", name)
        if kind is not None or re.fullmatch(_UNKNOWN, name):
            evidence = f"config.json has the architecture {name} and there is no modules.json"
            return DetectedKind(kind, evidence, bare=True)
    for kind in kinds().values():
        if kind.file and read(kind.file) is not None:
            return DetectedKind(kind, f"{kind.file} is a file of {kind.name} models", bare=True)
    return DetectedKind(dense, "config.json has the architecture of an encoder", bare=True)


def _matching(field: str, name: str) -> Kind | None:
    return _first(lambda kind: re.fullmatch(getattr(kind, field), name) is not None)


def _first(applies: Callable[[Kind], bool]) -> Kind | None:
    return next((kind for kind in kinds().values() if applies(kind)), None)
