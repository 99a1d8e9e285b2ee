"""`rgtg pairs`: preference pairs or labelled answers from a base model and any reward.

Reading prompts needs the package `datasets`, of the train extra.
"""

from rgtg_logits.pairs.report import PairReport, RateColumn
from rgtg_logits.pairs.run import make_pairs
from rgtg_logits.pairs.settings import PairSettings

__all__ = ["PairReport", "PairSettings", "RateColumn", "make_pairs"]
