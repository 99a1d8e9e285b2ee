"""The laws of memory: the package's scorers keep them, and a broken scorer is told by the law that it breaks."""

import pytest
import torch
from changing_model import skip_without_memory

from rgtg_logits import (
    CausalScorer,
    LogRatioScorer,
    ReferenceScorer,
    RetokenizingScorer,
    RewardModel,
    RewardModelConfig,
    VocabularyScorer,
    WeightedScorer,
)
from rgtg_logits.errors import VocabularyError
from rgtg_logits.instruments import count_forwards
from rgtg_logits.scorers.engine import sequence_memory
from rgtg_logits.testing import check_scorer, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model


def check(scorer, reward_model, reference=None, **options):
    def change():
        with torch.no_grad():
            for parameter in reward_model.model.parameters():
                parameter.mul_(1.3)

    reference = reference or ReferenceScorer(reward_model)
    with count_forwards([reward_model.backbone]) as count:
        return check_scorer(
            scorer, reference, count=lambda: count.tokens, change=change, rounds=1, tolerance=2e-4, **options
        )


CAUSAL = {
    "tree_attention": ("llama", {}),
    "windows": ("gemma2", {}),
    "speculating": ("gpt2", {"speculate": True}),
    "prepacked": ("llama", {"prepack": True}),
    "masked_tree_attention": ("llama", {"strategy": "masked_tree_attention"}),
    "expand": ("llama", {"strategy": "expand"}),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_scorers_keep_the_laws(name):
    model_type, options = CAUSAL[name]
    reward_model = RewardModel(tiny_reward_model(model_type))
    assert check(CausalScorer(reward_model, **options), reward_model) < 2e-4


def test_a_recurrent_model_continues_whole_texts():
    skip_without_memory("jamba")
    reward_model = RewardModel(tiny_reward_model("jamba"))
    scorer = CausalScorer(reward_model)
    assert check(scorer, reward_model, recurrent=True) < 2e-4
    with pytest.raises(AssertionError, match="Broken law 7: .* Where a system prompt is shared, the model read"):
        check(scorer, reward_model)


@pytest.mark.parametrize(("kind", "scorer"), [("vocabulary", VocabularyScorer), ("log_ratio", LogRatioScorer)])
def test_scorers_of_next_tokens_keep_the_laws(kind, scorer):
    reward_model = RewardModel(tiny_vocabulary_model(), config=RewardModelConfig(kind=kind))
    check(scorer(reward_model), reward_model)


def test_a_sum_keeps_the_laws():
    reward_model = RewardModel(tiny_reward_model())
    check(WeightedScorer([CausalScorer(reward_model)], [1.0]), reward_model)


def test_a_scorer_that_reads_text_keeps_the_laws():
    base, own = tiny_tokenizer(vocab_size=420), tiny_tokenizer(vocab_size=340)
    reward_model = RewardModel(tiny_reward_model(vocab_size=350, max_position_embeddings=512), own)
    check(RetokenizingScorer(reward_model, base), reward_model, ReferenceScorer(reward_model, base))


class OneRectangle(CausalScorer):
    """Begins anew when another number of rows comes."""

    num_rows = 0

    def score(self, rows, attention_mask, candidates):
        if len(rows) != self.num_rows:
            self.reset()
        self.num_rows = len(rows)
        return super().score(rows, attention_mask, candidates)


class OneCaller(CausalScorer):
    """Begins anew when other texts come, as those of another thread."""

    beginnings = frozenset()

    def score(self, rows, attention_mask, candidates):
        texts = [row[mask.bool()] for row, mask in zip(rows, attention_mask, strict=True)]
        beginnings = frozenset(tuple(text[:4].tolist()) for text in texts)
        if not beginnings & self.beginnings:
            self.reset()
        self.beginnings = beginnings
        return super().score(rows, attention_mask, candidates)


class TextsAlone(CausalScorer):
    """Remembers by the ids of texts, whatever the model has become."""

    def __init__(self, reward_model):
        super().__init__(reward_model)
        self._engine._follow_model = lambda: None


class CarefulOne(CausalScorer):
    """Begins anew after an error, to be sure."""

    def score(self, rows, attention_mask, candidates):
        try:
            return super().score(rows, attention_mask, candidates)
        except VocabularyError:
            self.reset()
            raise


BROKEN = {
    OneRectangle: "6: .* Where a row joins, the model read 342 tokens, but 70 are needed",
    OneCaller: "6: .* Where another thread has asked, the model read",
    TextsAlone: r"8: .* After change\(\): Broken law: results equal those without a cache",
    CarefulOne: "9: .* Where another row had an error, the model read",
}


@pytest.mark.parametrize("scorer", BROKEN)
def test_a_broken_scorer_is_told_by_its_law(scorer):
    reward_model = RewardModel(tiny_reward_model())
    check_scorer(scorer(reward_model), ReferenceScorer(reward_model))
    with pytest.raises(AssertionError, match=f"Broken law {BROKEN[scorer]}"):
        check(scorer(reward_model), reward_model)


def test_a_memory_that_is_overwritten(monkeypatch):
    """A text that parts from another one gets a slot of its own, but not what they share."""
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model)
    # Before, the probe would have chosen another strategy.
    monkeypatch.setattr(sequence_memory, "copy_prefix", lambda *_: None)
    with pytest.raises(AssertionError, match="Broken law: results equal those without a cache"):
        check(scorer, reward_model)


def test_what_cannot_be_checked_is_said():
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model)
    with pytest.raises(ValueError, match="Expected a reference where change is given"):
        check_scorer(scorer, change=lambda: None)
    with pytest.raises(ValueError, match=r"Expected change\(\) to change the model's rewards, but they stayed"):
        check_scorer(scorer, ReferenceScorer(reward_model), change=lambda: None)
