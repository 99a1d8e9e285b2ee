"""Training of reward models that score prefixes. Needs `pip install rgtg_logits[train]`."""

from rgtg_logits.prefix_accuracy import PairLengths, PairRewards, pair_lengths, prefix_accuracy
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.launch import launch_training
from rgtg_logits.train.losses import bradley_terry, full_bt, partial_bt
from rgtg_logits.train.show_data import DataReport, DataSettings, show_data
from rgtg_logits.train.trainer import PartialRewardTrainer

__all__ = [
    "DataReport",
    "DataSettings",
    "PairLengths",
    "PairRewards",
    "PartialRewardConfig",
    "PartialRewardTrainer",
    "bradley_terry",
    "full_bt",
    "launch_training",
    "pair_lengths",
    "partial_bt",
    "prefix_accuracy",
    "show_data",
]
