"""Linear layers in oneDNN's layout, with the operation after them in the same kernel. x86, float32.

The largest tensors of a layer are then written once instead of read and written three times.
"""

from __future__ import annotations

import platform
from typing import cast

import torch


def available() -> bool:
    """Whether this machine has these kernels."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and platform.machine() in ("x86_64", "AMD64")


class OneDnnLinear:
    """One linear layer, or several of the same rows with their outputs concatenated."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        """Raise `NotImplementedError` for a layer that is not a plain `torch.nn.Linear`."""
        if any(type(layer) is not torch.nn.Linear for layer in layers):
            raise NotImplementedError("a linear layer is something else")
        linear = cast("tuple[torch.nn.Linear, ...]", layers)
        weight = torch.cat([layer.weight.detach() for layer in linear])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
        biases: list[torch.Tensor | None] = [layer.bias for layer in linear]
        given = [bias.detach() for bias in biases if bias is not None]
        self._bias = torch.cat(given) if given else None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the layer of `rows`, any shape that ends in the layer's inputs."""
        return self._run(rows, "none")

    def gelu(self, rows: torch.Tensor) -> torch.Tensor:
        """Return GELU of the layer of `rows`."""
        return self._run(rows, "gelu")

    def plus(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the sum of the layer of `rows` and `others`."""
        added = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
        return cast("torch.Tensor", added(rows, others, self._weight, self._bias, "add"))

    def _run(self, rows: torch.Tensor, after: str) -> torch.Tensor:
        run = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        return cast("torch.Tensor", run(rows, self._weight, self._bias, after, [], "none"))
