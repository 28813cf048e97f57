"""How well the model retrieves the validation split, both ways, during training.

Out: a dict of figures. The gallery is the validation split alone, so the figures are higher than those
of a whole catalogue; they are for comparing epochs. `furnclip eval` measures the test split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from furnclip.metrics.bootstrap import bootstrap_interval
from furnclip.metrics.retrieval import mean_reciprocal_rank, ranks, recall_at_k
from furnclip.relevance import positives
from furnclip.train.data import TrainingData

Vectors = NDArray[np.float32]


def recall_intervals(images: Vectors, texts: Vectors, data: TrainingData) -> dict[str, list[float]]:
    """Text-to-image recall@1 and @5 as [value, low, high], 95 % by resampling whole groups."""
    groups = [text.group for text in data.texts]
    first = ranks(texts, images, positives(data.fixed_captions(), groups))
    intervals = {}
    for k in (1, 5):
        interval = bootstrap_interval((first <= k).astype(np.float64), groups)
        intervals[f"text_to_image_recall@{k}"] = [interval.value, interval.low, interval.high]
    return intervals


def retrieval_figures(images: Vectors, texts: Vectors, data: TrainingData) -> dict[str, float]:
    """recall@1, recall@5 and MRR both ways, and `score`, their mean.

    MRR is in it because a small split gives the same recall for many models."""
    answers = positives(data.fixed_captions(), [text.group for text in data.texts])
    figures: dict[str, float] = {}
    for way, queries, gallery in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        first = ranks(queries, gallery, answers)
        figures[f"{way}_recall@1"] = recall_at_k(first, 1)
        figures[f"{way}_recall@5"] = recall_at_k(first, 5)
        figures[f"{way}_mrr"] = mean_reciprocal_rank(first)
    return {"score": float(np.mean(list(figures.values()))), **figures}
