"""Sparse encoders such as SPLADE: weights of the words of a vocabulary."""

from worker.encoder.kinds import Kind

KIND = Kind(
    name="sparse",
    model_types=("SparseEncoder",),
    modules=r"(.*\.)?(MLMTransformer|SparseAutoEncoder|SparseStaticEmbedding|SpladePooling)",
    architectures=r".*ForMaskedLM",
    tasks=("fill-mask",),
    description="a sparse encoder (kind sparse), which weighs the words of a vocabulary",
)
