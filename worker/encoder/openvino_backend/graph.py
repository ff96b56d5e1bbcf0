"""A model as an OpenVINO graph: converted once, quantized to int8 if requested, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from sentence_transformers import SentenceTransformer

from worker.encoder.english import english
from worker.encoder.kinds import kind_of
from worker.encoder.openvino_backend import graph_cache
from worker.encoder.packing import GroupCost
from worker.encoder.rectangles import rectangles
from worker.encoder.token_rules import takes_token_types
from worker.encoder.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

#: A graph on disk depends on the versions of these packages.
_MADE_BY = ("openvino", "torch", "transformers", "sentence-transformers")
#: Texts that quantization measures the ranges of activations with.
_CALIBRATION_TEXTS = 192


def graph(model: SentenceTransformer, tokenizer: Tokenizer, *, int8: bool, cache: Path) -> Any:
    """Return the `openvino.Model` of `model`: ids and mask int64 (n, L) to vectors float32 (n, d).

    `cache`: the folder of graphs, named by a digest of their sources; a new one removes old ones,
    see `graph_cache`. A graph that cannot be written is converted again at the next start. Raises
    OpenVINO's exceptions if it cannot convert the model, ImportError if `int8` lacks nncf.
    """
    folder = cache / "openvino" / _key(model, int8=int8)
    cached = _cached(folder)
    if cached is not None:
        return cached
    converted = _converted(model)
    if int8:
        converted = _quantized(converted, tokenizer)
    try:
        _write(converted, folder)
    except (OSError, RuntimeError) as error:
        _log.warning("The converted model is not kept in %s: %s", folder, error)
    return converted


def _cached(folder: Path) -> Any:
    """Read the graph in `folder`, None if it does not exist."""
    file = folder / "graph.xml"
    if not file.is_file():
        return None
    graph_cache.mark_used(folder)
    try:
        return openvino.Core().read_model(file)
    except RuntimeError:
        # Another process, with another clock, may have removed it meanwhile.
        if file.is_file():
            raise
    return None


class _Whole(torch.nn.Module):
    """All modules of a sentence-transformers model, from ids to vectors."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self._parts = torch.nn.ModuleList(model.children())
        self._takes_types = takes_token_types(model)
        self._output = kind_of(model).output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        for part in self._parts:
            features = part(features)
        vectors: torch.Tensor = features[self._output]
        return vectors


def _converted(model: SentenceTransformer) -> Any:
    """Convert a model through OpenVINO's reader of traced modules.

    `openvino.convert_model` does the same and sends telemetry.
    """
    # Of unequal lengths, so that the trace contains the branch with a mask.
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    example = {"input_ids": torch.full((2, 8), 5) * mask, "attention_mask": mask}
    frontend = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.inference_mode():
        # It warns of constants in the trace; the comparison with the library detects wrong ones.
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(_Whole(model).eval(), example_input=example)
        converted = frontend.convert(frontend.load(decoder))
    for parameter in converted.get_parameters():
        parameter.set_partial_shape(openvino.PartialShape([-1, -1]))
        parameter.set_element_type(openvino.Type.i64)
    converted.validate_nodes_and_infer_types()
    return converted


def _quantized(converted: Any, tokenizer: Tokenizer) -> Any:
    """Quantize weights and activations to int8, with ranges from texts of all lengths."""
    # Disables the telemetry of nncf.
    os.environ.setdefault("NNCF_CI", "1")
    block = tokenizer(english(_CALIBRATION_TEXTS))
    batches = [
        [part.ids, part.real.astype(np.int64)]
        for part in rectangles(block, GroupCost(fixed=96.0, knee=512.0), 0)
    ]
    # Its progress bars; standard output may be the data of a command.
    with contextlib.redirect_stdout(sys.stderr):
        import nncf

        return nncf.quantize(
            converted,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )


def _key(model: SentenceTransformer, *, int8: bool) -> str:
    """Digest of the sources of a graph: weights, modules, and the versions of the packages."""
    digest = hashlib.blake2b(digest_size=16)
    versions = [metadata.version(name) for name in _MADE_BY]
    config = getattr(model.config, "to_json_string", str)()
    for part in (*versions, repr(model), config, str(int8)):
        digest.update(part.encode() + b"\0")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(converted: Any, folder: Path) -> None:
    """Write a graph atomically, also if other processes write the same one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = graph_cache.draft_in(folder.parent)
    try:
        openvino.save_model(converted, draft / "graph.xml", compress_to_fp16=False)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was first.
            if not folder.is_dir():
                raise
        graph_cache.prune(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
