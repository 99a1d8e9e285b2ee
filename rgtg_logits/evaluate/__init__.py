"""`rgtg evaluate`: compares decoding methods by reward, exact divergence from the base model, diversity and time."""

from rgtg_logits.evaluate.methods import Method, Policy, choose_methods, read_methods
from rgtg_logits.evaluate.report import console_tables
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, JudgeResult, PolicyResult
from rgtg_logits.evaluate.run import run_evaluation
from rgtg_logits.evaluate.settings import EvaluationSettings
from rgtg_logits.launcher import is_first, is_worker, launch_processes

__all__ = [
    "EqualKL",
    "Estimate",
    "EvaluationResults",
    "EvaluationSettings",
    "JudgeResult",
    "Method",
    "Policy",
    "PolicyResult",
    "choose_methods",
    "console_tables",
    "is_first",
    "is_worker",
    "launch_processes",
    "read_methods",
    "run_evaluation",
]
