"""The kind of a model, read from the files of its checkpoint before any weight is loaded.

sentence-transformers opens a checkpoint of any kind as a dense model: it drops the modules and
heads of the other kinds and takes the mean of the tokens. Such vectors look sound and are useless.
A comparison with the library does not show it, as the library converts in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["dense", "sparse", "multi_vector", "rerank"]
#: Gives the JSON value in a file of the checkpoint, None if there is no such file.
Read = Callable[[str], Any]

#: `model_type` in config_sentence_transformers.json; "ColBERT" is PyLate's.
_BY_MODEL_TYPE: dict[str, Kind] = {
    "SentenceTransformer": "dense",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi_vector",
    "ColBERT": "multi_vector",
    "CrossEncoder": "rerank",
}
#: Modules of one kind only, by the name of the class.
_BY_MODULE: dict[str, Kind] = {
    "MLMTransformer": "sparse",
    "SparseAutoEncoder": "sparse",
    "SparseStaticEmbedding": "sparse",
    "SpladePooling": "sparse",
    "MultiVectorMask": "multi_vector",
    "TokenPooling": "multi_vector",
    "LogitScore": "rerank",
}
#: `transformer_task` in sentence_bert_config.json.
_BY_TASK: dict[str, Kind] = {
    "fill-mask": "sparse",
    "retrieval": "multi_vector",
    "sequence-classification": "rerank",
    "text-generation": "rerank",
    "any-to-any": "rerank",
}
#: The head of a transformers checkpoint, at the end of its architecture's name. Those that are None
#: serve several purposes; other names are encoders, such as BertModel and BertForCL.
_BY_HEAD: dict[str, Kind | None] = {
    "ForMaskedLM": "sparse",
    "ForRetrieval": "multi_vector",
    "ForSequenceClassification": "rerank",
    "ForCausalLM": None,
    "ForConditionalGeneration": None,
    "ForMultipleChoice": None,
    "ForNextSentencePrediction": None,
    "ForPreTraining": None,
    "ForQuestionAnswering": None,
    "ForTokenClassification": None,
    "LMHeadModel": None,
}
#: HF_ColBERT, ColPaliForRetrieval, ColQwen2.
_LATE_INTERACTION = re.compile(r"(^|_)Col[A-Z]")

_DESCRIPTIONS: dict[Kind | None, str] = {
    "sparse": "a sparse encoder (kind sparse), which weighs the words of a vocabulary",
    "multi_vector": "a late-interaction model (kind multi_vector) with a vector for each token",
    "rerank": "a reranker or classifier (kind rerank), which scores texts",
    None: "of an unknown kind",
}


@dataclass(frozen=True, slots=True)
class DetectedKind:
    """The kind of a model, None if it is unknown, and the entry in its files that states it."""

    kind: Kind | None
    evidence: str
    #: Whether the checkpoint lacks the files of sentence-transformers, which state the pooling.
    bare: bool = False


def kind_of(read: Read) -> DetectedKind:
    """The kind of the checkpoint whose files `read` gives."""
    settings = read("config_sentence_transformers.json") or {}
    stated = settings.get("model_type", "SentenceTransformer")
    if stated != "SentenceTransformer":
        evidence = f"config_sentence_transformers.json has the model_type {stated!r}"
        return DetectedKind(_BY_MODEL_TYPE.get(stated), evidence)
    modules = read("modules.json")
    return _of_architecture(read) if modules is None else _of_modules(modules, read)


def objection(detected: DetectedKind) -> str | None:
    """Why a model of this kind does not run, in one line with a hint; None if it does."""
    if detected.kind == "dense":
        return None
    hint = "embedq runs dense models, which give one vector for each text"
    if detected.bare:
        hint += "; if this is one, save it with its pooling as docs/models.md describes"
    return f"is {_DESCRIPTIONS[detected.kind]}: {detected.evidence}; {hint}"


def _of_modules(modules: list[dict[str, str]], read: Read) -> DetectedKind:
    names = [module["type"].rpartition(".")[2] for module in modules]
    for module, name in zip(modules, names, strict=True):
        kind = "multi_vector" if module["type"].startswith("pylate.") else _BY_MODULE.get(name)
        if kind is not None:
            return DetectedKind(kind, f"modules.json has the module {module['type']}")
    if names[:1] != ["Transformer"] or "Pooling" in names:
        return DetectedKind("dense", "modules.json has the modules of a dense model")
    path = f"{modules[0]['path']}/sentence_bert_config.json".lstrip("/")
    settings = read(path) or {}
    task = settings.get("transformer_task")
    if task in _BY_TASK:
        return DetectedKind(_BY_TASK[task], f"{path} has the transformer_task {task!r}")
    if settings.get("module_output_name", "token_embeddings") == "token_embeddings":
        return DetectedKind("multi_vector", "modules.json has no module Pooling")
    return DetectedKind("dense", f"{path} has a module_output_name for whole texts")


def _of_architecture(read: Read) -> DetectedKind:
    """The kind of a checkpoint of transformers; one without a head is taken for a dense model."""
    if read("1_Pooling/config.json") is not None:
        # The copy of a model is not whole: without modules.json the library takes the mean.
        return DetectedKind(None, "1_Pooling is there, and modules.json, which names it, is not")
    config = read("config.json")
    if config is None:
        return DetectedKind("dense", "there is no config.json; the library names the missing files")
    for name in config.get("architectures") or ():
        evidence = f"config.json has the architecture {name} and there is no modules.json"
        if _LATE_INTERACTION.search(name):
            return DetectedKind("multi_vector", evidence, bare=True)
        for head, kind in _BY_HEAD.items():
            if name.endswith(head):
                return DetectedKind(kind, evidence, bare=True)
    if read("artifact.metadata") is not None:
        return DetectedKind("multi_vector", "artifact.metadata is a file of ColBERT", bare=True)
    return DetectedKind("dense", "config.json has the architecture of an encoder", bare=True)
