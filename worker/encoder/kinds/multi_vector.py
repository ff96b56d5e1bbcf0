"""Late-interaction models such as ColBERT: a vector for each token."""

from worker.encoder.kinds import Kind

KIND = Kind(
    name="multi_vector",
    # "ColBERT" is PyLate's.
    model_types=("MultiVectorEncoder", "ColBERT"),
    modules=r"pylate\..*|(.*\.)?(MultiVectorMask|TokenPooling)",
    # HF_ColBERT, ColPaliForRetrieval, ColQwen2.
    architectures=r"(.*_)?Col[A-Z].*|.*ForRetrieval",
    tasks=("retrieval",),
    file="artifact.metadata",
    description="a late-interaction model (kind multi_vector) with a vector for each token",
)
