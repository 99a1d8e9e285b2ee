"""`rgtg check`: whether a base model and a reward model fit each other, measured on the two themselves.

Each module makes one kind of finding: `models` says what the two are and whether tokens and contexts fit, `exactness`
whether cached rewards equal those of plain forwards (`uncached` computes these), `pairs` how early the reward model
tells the better answer, `cost` what a token costs. `run` calls them, and `findings` is the report.
"""

from rgtg_logits.check.findings import CheckReport, Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.check.run import CheckSettings, check_models, run_check

__all__ = ["CheckReport", "CheckSettings", "Finding", "ModelPair", "check_models", "run_check"]
