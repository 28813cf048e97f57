"""The mathematics of measuring: retrieval metrics, intervals and tests; numpy only."""

from furnclip.metrics.bootstrap import Interval, PairedTest, bootstrap_interval, paired_test
from furnclip.metrics.retrieval import (
    Gains,
    average_precision,
    chance_recall_at_k,
    every_rank,
    mean_reciprocal_rank,
    ndcg_at_k,
    ranks,
    recall_at_k,
    right_answers,
)

__all__ = [
    "Gains",
    "Interval",
    "PairedTest",
    "average_precision",
    "bootstrap_interval",
    "chance_recall_at_k",
    "every_rank",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "paired_test",
    "ranks",
    "recall_at_k",
    "right_answers",
]
