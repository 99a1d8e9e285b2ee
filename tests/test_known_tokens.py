"""Tokens that only the base model has, or no tokenizer, are no candidates; all other ids are shared."""

import pickle
import warnings

import pytest
import torch

from rgtg_logits import (
    CausalScorer,
    PartialRewardLogitsProcessor,
    RetokenizingScorer,
    RewardModel,
    RewardModelConfig,
    WeightedScorer,
)
from rgtg_logits.errors import VocabularyError
from rgtg_logits.scorers import KnownTokens, make_scorer
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model
from rgtg_logits.tokenization import shared_vocabulary

KINDS = ["causal", "vocabulary", "log_ratio"]
TEXT = "the film was good"


def defaults():
    return {"on_overflow": "error", "max_tokens_per_forward": None, "compile": False, "prepack": False}


def extended(**changes):
    """A tokenizer with more tokens than the reward model's."""
    tokenizer = tiny_tokenizer(kind="llama3")
    tokenizer.add_special_tokens(changes or {"pad_token": "[EXTRA]"})
    return tokenizer


def reward_model(kind="causal", size=None, tokenizer=True):
    tokenizer = tiny_tokenizer(kind="llama3") if tokenizer is True else tokenizer
    make = tiny_reward_model if kind == "causal" else tiny_vocabulary_model
    model = make(vocab_size=size or len(tiny_tokenizer(kind="llama3")))
    return RewardModel(model, tokenizer, config=RewardModelConfig(kind=kind))


def by_hand(model, row, tokens):
    """Rewards by the model itself, one text at a time."""
    return torch.stack([model.score_tokens(torch.tensor([[*row, token]]))[0, -1] for token in tokens])


def expected(model, row, scores, tokens, beta=1.0):
    return (scores[tokens].double() + beta * by_hand(model, row, tokens).double()).log_softmax(-1)


def scores_of(width, unknown=(), seed=0):
    """Scores of the base model, in which unknown tokens are the best."""
    scores = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    scores[0, list(unknown)] += 20
    return scores


@pytest.mark.parametrize("top_k", [5, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_an_added_pad_token(kind, top_k):
    tokenizer = extended()
    model = reward_model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=top_k)
    assert not isinstance(processor.scorer, RetokenizingScorer)
    row = tokenizer(TEXT)["input_ids"]
    scores = scores_of(len(tokenizer), [tokenizer.pad_token_id])
    before = scores.clone()
    guided = processor(torch.tensor([row]), scores)[0]
    tokens = guided.isfinite().nonzero()[:, 0].tolist()
    assert len(tokens) == min(top_k, len(tokenizer) - 1) and tokenizer.pad_token_id not in tokens
    right = expected(model, row, scores[0], tokens)
    torch.testing.assert_close(guided[tokens].double(), right, atol=1e-4, rtol=1e-4)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("rest", ["drop", "keep"])
@pytest.mark.parametrize("top_k", [5, 10_000])
@pytest.mark.parametrize("padding", [0, 8, 80])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_base_vocabulary(kind, padding, top_k, rest):
    tokenizer = tiny_tokenizer(kind="llama3")
    size = len(tokenizer)
    model = reward_model(kind, size + padding)
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=top_k, rest=rest)
    row = tokenizer(TEXT)["input_ids"]
    scores = scores_of(size + 40, range(size, size + 40))
    guided = processor(torch.tensor([row]), scores)[0]
    assert not guided[size:].isfinite().any()
    best = scores[0, :size].topk(min(top_k, size)).indices.tolist()
    torch.testing.assert_close(
        guided[best].double().log_softmax(-1), expected(model, row, scores[0], best), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("prompt_format", [None, "{prompt}{answer}".format])
def test_generation_draws_no_padding_row(prompt_format):
    tokenizer = tiny_tokenizer(kind="llama3")
    other = tiny_tokenizer(["zebra yak quiz"] * 5)
    base = tiny_base_model(vocab_size=len(tokenizer) + 200)
    model = RewardModel(tiny_reward_model(vocab_size=300), other)
    with pytest.warns(UserWarning, match=r"reads text, because \d+ tokens of the base model \(such as '.+'\)"):
        processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=30)
    assert isinstance(processor.scorer, RetokenizingScorer)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    output = base.generate(
        ids, do_sample=True, top_k=0, max_new_tokens=30, pad_token_id=0, eos_token_id=None, logits_processor=[processor]
    )
    assert int(output.max()) < len(tokenizer)


def test_without_a_tokenizer_nobody_knows_which_tokens_there_are():
    size = len(tiny_tokenizer(kind="llama3"))
    processor = PartialRewardLogitsProcessor(reward_model(), top_k=5)
    assert processor.scorer.known_tokens is None
    with pytest.raises(VocabularyError, match=r"Pass tokenizer="):
        processor(torch.tensor([[7, 8]]), scores_of(size + 40, range(size, size + 40)))


class Special:
    """Ways in which a special token that only the base model has is needed."""

    @staticmethod
    def end():
        return extended(eos_token="<|done|>"), ()

    @staticmethod
    def start():
        tokenizer = extended(bos_token="<|start|>")
        return tokenizer, ()

    @staticmethod
    def end_of_the_generation_config():
        tokenizer = extended(additional_special_tokens=["<|done|>"])
        return tokenizer, [tokenizer.convert_tokens_to_ids("<|done|>")]

    @staticmethod
    def chat():
        tokenizer = extended(additional_special_tokens=["<|turn|>"])
        tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"
        return tokenizer, ()

    @staticmethod
    def word():
        tokenizer = tiny_tokenizer(kind="llama3")
        tokenizer.add_tokens(["zebra"])
        return tokenizer, ()


@pytest.mark.parametrize("need", ["end", "start", "end_of_the_generation_config", "chat", "word"])
def test_a_token_that_text_needs_is_read_as_text(need):
    tokenizer, ends = getattr(Special, need)()
    with pytest.warns(UserWarning, match="The reward model reads text"):
        scorer = make_scorer(reward_model(), tokenizer, eos_token_id=ends, **defaults())
    assert isinstance(scorer, RetokenizingScorer)
    with pytest.raises(VocabularyError, match=r"to share a vocabulary, .* \(such as '"):
        make_scorer(reward_model("vocabulary"), tokenizer, eos_token_id=ends, **defaults())


def test_who_asks_for_text_is_not_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_scorer(reward_model(), extended(), prompt_format="{}{}".format, **defaults())


def test_the_reward_models_own_tokens_do_not_matter():
    tokenizer = tiny_tokenizer(kind="llama3")
    model = reward_model(size=len(tokenizer) + 1, tokenizer=extended(pad_token="[RM PAD]"))
    assert isinstance(make_scorer(model, tokenizer, **defaults()), CausalScorer)
    # Both added a token of their own at the same id.
    scorer = make_scorer(model, extended(), **defaults())
    assert isinstance(scorer, CausalScorer) and len(tokenizer) not in scorer.known_tokens.ids


@pytest.mark.parametrize("wider", [0, 8])
def test_a_prompt_with_a_token_that_the_reward_model_lacks_is_refused(wider):
    tokenizer = extended(additional_special_tokens=["<|tool|>"], pad_token="[EXTRA]")
    tool, pad = tokenizer.convert_tokens_to_ids(["<|tool|>", "[EXTRA]"])
    model = reward_model(size=len(tiny_tokenizer(kind="llama3")) + wider)
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=5)
    scores = scores_of(len(tokenizer))
    processor(torch.tensor([[pad, 7, 8]]), scores)
    with pytest.raises(VocabularyError):
        processor(torch.tensor([[7, tool, 8]]), scores)


def test_a_weighted_sum_and_a_copy():
    tokenizer = extended()
    other = RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer(["zebra yak quiz"] * 5))
    with pytest.warns(UserWarning, match="reads text"):
        weighted = WeightedScorer([reward_model(), other], [1.0, 0.5], tokenizer=tokenizer)
    alone = WeightedScorer([reward_model()], [1.0], tokenizer=tokenizer)
    for scorer in (weighted, pickle.loads(pickle.dumps(alone))):
        guided = PartialRewardLogitsProcessor(scorer, top_k=5)(
            torch.tensor([[7, 8]]), scores_of(len(tokenizer) + 9, range(len(tokenizer) - 1, len(tokenizer) + 9))
        )
        assert guided.isfinite().sum() == 5 and not guided[0, len(tokenizer) - 1 :].isfinite().any()


def test_a_forced_token_stays_possible():
    known = KnownTokens([0, 1, 2])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [float("-inf")] * 3 + [0.0]])
    masked = known.mask(scores)
    assert masked[0].tolist() == [0.0, 1.0, 2.0, float("-inf")] and torch.equal(masked[1], scores[1])
    assert known.mask(scores[:, :3].clone()).isfinite().any() and KnownTokens.of_all([None, None]) is None
    every = KnownTokens(range(4))
    assert every.mask(scores) is scores and KnownTokens.of_all([known, every, None]).ids == {0, 1, 2}


def test_vocabularies_that_differ():
    tokenizer = tiny_tokenizer(kind="llama3")
    assert shared_vocabulary(tokenizer, None).shares_ids and shared_vocabulary(tokenizer, tokenizer).differing == 0
    assert shared_vocabulary(extended(), tokenizer).unshared == {len(tokenizer)}
    different = shared_vocabulary(tokenizer, tiny_tokenizer(["zebra yak quiz"] * 5))
    assert not different.shares_ids and different.needed in tokenizer.get_vocab()
