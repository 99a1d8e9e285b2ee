"""The model card: from facts to text. Pure: knows no model, no network, no clock.

Files of cards are in `card.files`, pictures in `card.plots`.
"""

from rgtg_logits.card.facts import (
    BaseCardFacts,
    CardFacts,
    DataFacts,
    Evaluation,
    Guidance,
    GuidedPoint,
    RewardDistribution,
    ScoredExample,
)
from rgtg_logits.card.render import render_card

__all__ = [
    "BaseCardFacts",
    "CardFacts",
    "DataFacts",
    "Evaluation",
    "Guidance",
    "GuidedPoint",
    "RewardDistribution",
    "ScoredExample",
    "render_card",
]
