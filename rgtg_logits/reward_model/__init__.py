"""Reward models: ordinary transformers checkpoints, and how the reward of every prefix is read from them."""

from rgtg_logits.reward_model.classifiers import classifier_class
from rgtg_logits.reward_model.config import KINDS, RewardModelConfig
from rgtg_logits.reward_model.forward import output_scores, token_scores
from rgtg_logits.reward_model.loading import HUB_ARGUMENTS, check_decoder, check_labels
from rgtg_logits.reward_model.model import RewardModel
from rgtg_logits.reward_model.saving import push_folder
from rgtg_logits.reward_model.scoring import positions
from rgtg_logits.reward_model.unwrapping import unwrap_adapter

__all__ = [
    "HUB_ARGUMENTS",
    "KINDS",
    "RewardModel",
    "RewardModelConfig",
    "check_decoder",
    "check_labels",
    "classifier_class",
    "output_scores",
    "positions",
    "push_folder",
    "token_scores",
    "unwrap_adapter",
]
