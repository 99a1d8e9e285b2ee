"""Names of version 0.1 go on working for one release, with a warning that says today's."""

import warnings

import pytest

from rgtg_logits import CausalScorer, LogRatioScorer, RewardModel, RewardModelConfig
from rgtg_logits.scorers.engine.deprecated import OLD_STRATEGIES
from rgtg_logits.scorers.engine.strategies import STRATEGIES
from rgtg_logits.testing import tiny_base_model, tiny_reward_model


@pytest.fixture(scope="module")
def reward_model():
    return RewardModel(tiny_reward_model())


@pytest.mark.parametrize("old", OLD_STRATEGIES)
def test_old_strategies(reward_model, old):
    with pytest.warns(FutureWarning, match=f"got the strategy '{old}'. Use '{OLD_STRATEGIES[old]}'") as caught:
        scorer = CausalScorer(reward_model, strategy=old)
    assert scorer.strategy == OLD_STRATEGIES[old] and scorer.strategy in STRATEGIES
    assert [warning.filename for warning in caught] == [__file__]


def test_the_old_option(reward_model):
    with pytest.warns(FutureWarning, match="got the option path=. Use strategy=") as caught:
        assert CausalScorer(reward_model, path="recompute").strategy == "recompute"
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(FutureWarning) as caught:
        assert CausalScorer(reward_model, path="siblings").strategy == "tree_attention"
    assert len(caught) == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_old_attribute(reward_model, name):
    scorer = CausalScorer(reward_model, strategy=name)
    with pytest.warns(FutureWarning, match="got the attribute path. Use strategy") as caught:
        old = scorer.path
    assert OLD_STRATEGIES.get(old, old) == name
    assert [warning.filename for warning in caught] == [__file__]


def test_language_models():
    policy = RewardModel(tiny_base_model(), config=RewardModelConfig(kind="log_ratio"))
    with pytest.warns(FutureWarning, match="Use strategy="):
        scorer = LogRatioScorer(policy, path="siblings")
    with pytest.warns(FutureWarning, match="Use strategy"):
        assert scorer.path == "siblings" and scorer.strategy == "tree_attention"


def test_new_names_warn_of_nothing(reward_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert CausalScorer(reward_model, strategy="tree_attention").strategy == "tree_attention"
