"""Models that change while they are in use, beside models that never do."""

from functools import lru_cache

import pytest
from oracle import Rewards

from rgtg_logits import CausalScorer, RewardModel
from rgtg_logits.testing import tiny_reward_model


class ChangingModel:
    """A model that takes the weights of one of two others, its states, whose rewards are known.

    Attributes:
        model: The model.
        rewards: The `Rewards` of each state, from a model that stays as it is.
    """

    def __init__(self, make, read):
        """Makes three models.

        Args:
            make: Gives a model from a seed.
            read: Gives, from a model, the function that `Rewards` takes.
        """
        self.model = make(1)
        self.state = 0
        twins = [make(1), make(2)]
        self.rewards = [Rewards(read(twin)) for twin in twins]
        self._weights = [twin.state_dict() for twin in twins]

    def become(self, state):
        if state != self.state:
            self.model.load_state_dict(self._weights[state])
            self.state = state


@lru_cache
def _remembers(model_type):
    return CausalScorer(RewardModel(tiny_reward_model(model_type))).strategy != "recompute"


def skip_without_memory(model_type):
    """Skips a test where transformers gives a model no cache that can be taken over, as Jamba's on 4.57."""
    if not _remembers(model_type):
        pytest.skip(f"this transformers gives {model_type} no cache that can be reordered")


@lru_cache
def changing(make, model_type, read):
    """The `ChangingModel` of a type in its first state; one for all, so that rewards are remembered."""
    return ChangingModel(lambda seed: make(model_type, seed=seed), read)


def last_rewards(model):
    """Rewards of texts by the head of a sequence classifier."""
    return lambda tokens: model.score(model.base_model(tokens).last_hidden_state[:, -1])[:, 0]


def last_logits(model):
    """Rewards of texts by the logits of their last tokens, which are log-probabilities up to a constant of the row."""
    return lambda tokens: model(tokens[:, :-1]).logits[:, -1].gather(-1, tokens[:, -1:])[:, 0]
