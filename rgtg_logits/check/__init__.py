"""Whether a base model and a reward model fit each other, measured on the two themselves: `rgtg check`.

Each room finds one kind of thing: `models` what the two are and whether tokens and contexts fit, `exactness` whether
cached rewards are those of plain forwards (`uncached` makes these for every kind), `pairs` how early the
reward model tells the better answer, `cost` what a token costs. `run` calls them, `findings` is what they report.
"""

from rgtg_logits.check.findings import CheckReport, Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.check.run import CheckSettings, check_models, run_check

__all__ = ["CheckReport", "CheckSettings", "Finding", "ModelPair", "check_models", "run_check"]
