"""How good guided texts are, and what they cost in divergence and time: the body of `rgtg evaluate`."""

from rgtg_logits.evaluate.methods import Method, Policy, choose_methods, read_methods
from rgtg_logits.evaluate.report import console_tables
from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, JudgeResult, PolicyResult
from rgtg_logits.evaluate.run import evaluate
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
    "evaluate",
    "is_first",
    "is_worker",
    "launch_processes",
    "read_methods",
]
