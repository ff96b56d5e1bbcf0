"""Rerankers (cross-encoders) and classifiers: scores of pairs or texts."""

from worker.encoder.kinds import Kind

KIND = Kind(
    name="rerank",
    model_types=("CrossEncoder",),
    modules=r"(.*\.)?LogitScore",
    architectures=r".*ForSequenceClassification",
    tasks=("sequence-classification", "text-generation", "any-to-any"),
    description="a reranker or classifier (kind rerank), which scores texts",
)
