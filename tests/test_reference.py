"""The reference scorer where it reads text, against whole texts put together by hand."""

import pytest
import torch
from test_retokenizing import WholeTexts

from rgtg_logits import ReferenceScorer, RetokenizingScorer, RewardModel, RewardModelConfig
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.testing import (
    EOS,
    PAD,
    TOKENIZER_KINDS,
    check_scorer,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
)


def reward_model(**tokenizer):
    rm_tokenizer = tiny_tokenizer(vocab_size=340, **tokenizer)
    return RewardModel(tiny_reward_model(vocab_size=len(rm_tokenizer)), rm_tokenizer)


@pytest.mark.parametrize("rm_kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("base_kind", TOKENIZER_KINDS)
def test_whole_texts(base_kind, rm_kind):
    model, tokenizer = reward_model(kind=rm_kind), tiny_tokenizer(kind=base_kind, vocab_size=420)
    check_scorer(ReferenceScorer(model, tokenizer), WholeTexts(model, tokenizer), rounds=1)


@pytest.mark.parametrize("rm_kind", ["gpt2", "llama2"])
@pytest.mark.parametrize("adds", [{"adds_bos": True}, {"adds_eos": True}, {"adds_bos": True, "adds_eos": True}])
def test_a_tokenizer_that_adds_tokens_itself(rm_kind, adds):
    model, tokenizer = reward_model(kind=rm_kind, **adds), tiny_tokenizer(vocab_size=420)
    reference = ReferenceScorer(model, tokenizer)
    check_scorer(RetokenizingScorer(model, tokenizer), reference, rounds=1)
    text, opening = tokenizer("the film was")["input_ids"], [2] * ("adds_bos" in adds)
    bare = model.tokenizer("the film was good", add_special_tokens=False)["input_ids"]
    *beginning, last = tokenizer("the film was good")["input_ids"]
    assert reference.read(beginning, last) == [*opening, *bare]
    bare = model.tokenizer("the film was", add_special_tokens=False)["input_ids"]
    assert reference.read(text, EOS) == [*opening, *bare, EOS]
    # A special token is no text.
    assert reference.read(text, PAD) == [*opening, *bare]
    assert reference.read([EOS], PAD) == (opening or [EOS])


def test_finished_rows():
    model, tokenizer = reward_model(), tiny_tokenizer(vocab_size=420)
    rows = torch.tensor([[7, 8, PAD], [PAD, 7, 8]])
    mask = infer_attention_mask(rows, PAD) * torch.tensor([[1, 1, 0], [1, 1, 1]])
    rewards = ReferenceScorer(model, tokenizer).score(rows, mask, torch.tensor([[9, 300], [9, 300]]))
    assert (rewards[0] == 0).all() and (rewards[1] != 0).all()


def test_models_that_cannot_read_text():
    base = tiny_tokenizer(vocab_size=420)
    with pytest.raises(InvalidArgumentError, match="but it has no tokenizer. Leave tokenizer out"):
        ReferenceScorer(RewardModel(tiny_reward_model()), base)
    language_model = RewardModel(tiny_base_model(), tiny_tokenizer(), config=RewardModelConfig(kind="vocabulary"))
    with pytest.raises(InvalidArgumentError, match="but it has the kind 'vocabulary'"):
        ReferenceScorer(language_model, base)
