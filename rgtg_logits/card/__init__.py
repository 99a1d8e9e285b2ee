"""Model cards: text and pictures rendered from measured facts, and their files."""

from rgtg_logits.card.facts import (
    CardFacts,
    DataFacts,
    Guidance,
    GuidedPoint,
    PrefixEvaluation,
    RewardDistribution,
    ScoredExample,
)
from rgtg_logits.card.files import card_differences, read_facts, render_folder, score_example, write_card
from rgtg_logits.card.render import render_card

__all__ = [
    "CardFacts",
    "DataFacts",
    "Guidance",
    "GuidedPoint",
    "PrefixEvaluation",
    "RewardDistribution",
    "ScoredExample",
    "card_differences",
    "read_facts",
    "render_card",
    "render_folder",
    "score_example",
    "write_card",
]
