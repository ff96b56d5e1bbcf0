"""The registry of kinds. A kind is one file of this folder, which defines `KIND`.

- `dense`: one vector for each text
- `sparse`: weights of the words of a vocabulary
- `multi_vector`: a vector for each token
- `rerank`: scores of texts or pairs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

import torch
from sentence_transformers import SentenceTransformer

from worker.encoder.layout import PackedBatch

#: Computes the output of a packed batch, (n, d), from the vectors of its tokens, (T, size).
Head = Callable[[torch.Tensor, PackedBatch], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of model: how its files show it, and how it computes its output."""

    name: str
    #: `model_type` in config_sentence_transformers.json: classes of models of this kind.
    model_types: tuple[str, ...]
    #: Regular expression of `type` in modules.json: modules of this kind only.
    modules: str = ""
    #: Regular expression of an architecture in config.json of a checkpoint without modules.json.
    architectures: str = ""
    #: `transformer_task` in sentence_bert_config.json.
    tasks: tuple[str, ...] = ()
    #: A file that only checkpoints of this kind have.
    file: str = ""
    #: The noun phrase that names it in the reason for a refusal.
    description: str
    #: Key of the output in the features of the model's last module.
    output: str = ""
    #: Makes the head of a loaded model for packed batches; None: the kind does not run. Raises
    #: `NotImplementedError` for a model that cannot be packed.
    head: Callable[[SentenceTransformer], Head] | None = None


def kinds() -> dict[str, Kind]:
    """Return every kind by its name."""
    modules = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
    return {module.KIND.name: module.KIND for module in modules}


def kind_of(model: SentenceTransformer) -> Kind:
    """Return the kind of a loaded model, by its class."""
    name = type(model).__name__
    return next(kind for kind in kinds().values() if name in kind.model_types)
