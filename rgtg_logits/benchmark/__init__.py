"""`rgtg benchmark`: what guidance costs, first token, further tokens and memory, as ratios to the least possible."""

from rgtg_logits.benchmark._arms import ARMS
from rgtg_logits.benchmark._costs import DEFAULT_ARMS, BenchmarkReport, BenchmarkSettings, ProfileReport
from rgtg_logits.benchmark.run import run_benchmark, run_profile

__all__ = [
    "ARMS",
    "DEFAULT_ARMS",
    "BenchmarkReport",
    "BenchmarkSettings",
    "ProfileReport",
    "run_benchmark",
    "run_profile",
]
