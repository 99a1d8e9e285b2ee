"""`rgtg benchmark`: the cost of guidance (first token, further tokens, memory) as ratios to the least possible."""

from rgtg_logits.benchmark.churn import ChurnReport, run_churn
from rgtg_logits.benchmark.report import BenchmarkReport, ProfileReport
from rgtg_logits.benchmark.run import run_benchmark, run_profile
from rgtg_logits.benchmark.settings import (
    DEFAULT_METHODS,
    METHODS,
    TRAINING_METHODS,
    BenchmarkSettings,
    TrainingBenchmarkSettings,
)
from rgtg_logits.benchmark.training import TrainingBenchmarkReport, run_training_benchmark

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "TRAINING_METHODS",
    "BenchmarkReport",
    "BenchmarkSettings",
    "ChurnReport",
    "ProfileReport",
    "TrainingBenchmarkReport",
    "TrainingBenchmarkSettings",
    "run_benchmark",
    "run_churn",
    "run_profile",
    "run_training_benchmark",
]
