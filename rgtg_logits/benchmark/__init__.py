"""`rgtg benchmark`: what guidance costs, first token, further tokens and memory, as ratios to the least possible."""

from rgtg_logits.benchmark.methods import ARMS
from rgtg_logits.benchmark.report import DEFAULT_ARMS, BenchmarkReport, BenchmarkSettings, ProfileReport
from rgtg_logits.benchmark.run import run_benchmark, run_profile
from rgtg_logits.benchmark.training import TrainingReport, TrainingSettings, run_training_benchmark

__all__ = [
    "ARMS",
    "DEFAULT_ARMS",
    "BenchmarkReport",
    "BenchmarkSettings",
    "ProfileReport",
    "TrainingReport",
    "TrainingSettings",
    "run_benchmark",
    "run_profile",
    "run_training_benchmark",
]
