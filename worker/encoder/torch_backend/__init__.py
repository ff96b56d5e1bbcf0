"""The torch backend.

In reading order:

- `loading`: load a model, in the number format that is more accurate
- `paths`: choose the fastest forward pass that gives the library's vectors
- `encoder`: the loaded model, for the engine
- `forward`: run a batch packed into one sequence, padded into rectangles, or as a lookup
- `bert`: the layers of BERT and related models, for packed batches on a CPU
- `onednn`: linear layers that add bias, GELU or a residual in one kernel
- `cpu`: settings of torch and the C library for CPUs
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from worker.contract.backends import ComputeBackend
from worker.contract.models import ModelSpec
from worker.encoder.protocol import Encoder, LoadOptions


def _open(spec: ModelSpec, options: LoadOptions) -> Encoder:
    set_allocator(os.environ)
    from worker.encoder.torch_backend.loading import load_torch

    return load_torch(spec, options)


def set_allocator(environ: MutableMapping[str, str]) -> None:
    """Let CUDA's memory grow in place, since batches of many sizes fragment it otherwise.

    torch reads this when it first uses CUDA. A user's own setting stays. torch 2.9 renamed the
    variable and warns of the old name unless both are set.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in environ for name in names):
        environ.update(dict.fromkeys(names, "expandable_segments:True"))


#: The first of `auto`: its packed batches were the faster float32 in every measurement.
BACKEND = ComputeBackend(
    name="torch",
    order=0,
    dtypes=("float32", "bfloat16", "float16"),
    library="torch",
    extra="worker",
    open=_open,
)
