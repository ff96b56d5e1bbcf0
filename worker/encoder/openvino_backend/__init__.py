"""The OpenVINO backend, on CPUs; the only one with int8.

In reading order:

- `encoder`: load a model; the loaded model, for the engine
- `graph`: convert and quantize a model
- `graph_cache`: converted models on disk
- `forward`: run a batch as rectangles
"""

from __future__ import annotations

from worker.contract.backends import ComputeBackend
from worker.contract.models import ModelSpec
from worker.encoder.protocol import Encoder, LoadOptions


def _open(spec: ModelSpec, options: LoadOptions) -> Encoder:
    from worker.encoder.openvino_backend.encoder import load_openvino

    return load_openvino(spec, options)


BACKEND = ComputeBackend(
    name="openvino",
    order=1,
    dtypes=("float32", "bfloat16", "float16", "int8"),
    library="openvino",
    extra="openvino",
    cpu_only=True,
    open=_open,
)
