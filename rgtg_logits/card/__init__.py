"""Model cards: from measured facts to text, pictures and files."""

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
from rgtg_logits.card.files import card_differences, read_facts, render_folder, score_example, write_card
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
    "card_differences",
    "read_facts",
    "render_card",
    "render_folder",
    "score_example",
    "write_card",
]
