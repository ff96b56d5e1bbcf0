"""The models of the settings, loaded and warmed up, with progress in the log."""

from __future__ import annotations

import logging
import time

from worker.contract.settings import Settings
from worker.encoder.protocol import Encoder

logger = logging.getLogger(__name__)


def load_encoders(settings: Settings) -> dict[str, Encoder]:
    """Every served model by its name, the default first.

    Raises ModelUnavailable, DeviceUnavailable or DeviceMemoryError.
    """
    # Only here: producers import this package without torch.
    from worker.encoder import load

    encoders: dict[str, Encoder] = {}
    for spec in settings.models:
        started = time.monotonic()
        encoder = load(
            spec,
            device=settings.device,
            backend=settings.backend,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            threads=settings.threads,
        )
        encoder.warm_up()
        info = encoder.info
        logger.warning(
            "Model %s: %d dimensions, %s %s on %s, %s batches of %d tokens, ready in %.1f s",
            info.name,
            info.dimensions,
            info.backend,
            info.dtype,
            info.device,
            "packed" if info.packed else "padded",
            info.batch_tokens,
            time.monotonic() - started,
        )
        encoders[spec.name] = encoder
    return encoders
