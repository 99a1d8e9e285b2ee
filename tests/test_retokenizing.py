"""Reward models with another tokenizer: every reward is that of the candidate's whole text, tokenised from scratch."""

import warnings

import pytest
import torch
from oracle import Recorder

from rgtg_logits import PartialRewardLogitsProcessor, RetokenizingScorer, RewardModel, Scorer
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError, PaddingError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.scorers.engine import num_dropped_tokens
from rgtg_logits.testing import (
    EOS,
    PAD,
    TINY,
    TOKENIZER_KINDS,
    check_scorer,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
)

TEXTS = ["the film was good and the end was bad", "a café 映画 😀", "we'll see:  1999"]


def reward_model(model_type="llama", kind="gpt2", **tokenizer):
    # Fewer merges than the base model's, so that tokens of the two begin and end in different places.
    rm_tokenizer = tiny_tokenizer(kind=kind, vocab_size=340, **tokenizer)
    return RewardModel(
        tiny_reward_model(model_type, vocab_size=len(rm_tokenizer) + 8, max_position_embeddings=512), rm_tokenizer
    )


def base_tokenizer(kind="gpt2"):
    return tiny_tokenizer(kind=kind, vocab_size=420)


class WholeTexts(Scorer):
    """One candidate at a time, its whole text tokenised from scratch; prompts are given, not guessed."""

    def __init__(self, reward_model, tokenizer, render=None, prompts=()):
        self.reward_model, self.tokenizer, self.render, self.prompts = reward_model, tokenizer, render, prompts
        self.vocab_size = len(tokenizer)

    def text(self, ids):
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        ordinary = [token for token in ids if token not in special and token < len(self.tokenizer)]
        readings = [
            self.tokenizer.decode(ordinary[: len(ordinary) - cut], clean_up_tokenization_spaces=False).rstrip("\ufffd")
            for cut in range(min(4, len(ordinary)) + 1)
        ]
        # The text of a row that ends within a character ends before that character.
        whole = self.tokenizer.decode(ordinary, clean_up_tokenization_spaces=False)
        return max(readings, key=len) if whole.endswith("\ufffd") else whole

    def tokens(self, row, candidate):
        rm_tokenizer, closed = self.reward_model.tokenizer, candidate == self.tokenizer.eos_token_id
        text = self.text(row if closed else [*row, candidate])
        if self.render is not None:
            prompt = next(prompt for prompt in self.prompts if row[: len(prompt)] == prompt)
            prompt_text = self.text(prompt)
            text = self.render(prompt_text, text[len(prompt_text) :])
        ids = rm_tokenizer(text)["input_ids"]
        return [*ids, rm_tokenizer.eos_token_id] if closed else ids

    def score(self, rows, attention_mask, candidates):
        rewards = torch.zeros(candidates.shape)
        for index, (row, mask) in enumerate(zip(rows, attention_mask, strict=True)):
            for slot, candidate in enumerate(candidates[index].tolist()):
                ids = self.tokens(row[mask.bool()].tolist(), candidate) or [self.reward_model.tokenizer.eos_token_id]
                rewards[index, slot] = self.reward_model.score_tokens(torch.tensor([ids]))[0, -1]
        return rewards


@pytest.mark.parametrize("model_type", TINY)
def test_the_laws_on_every_architecture(model_type):
    model, tokenizer = reward_model(model_type), base_tokenizer()
    check_scorer(RetokenizingScorer(model, tokenizer), WholeTexts(model, tokenizer), rounds=2)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("rm_tokenizer", TOKENIZER_KINDS)
@pytest.mark.parametrize("base", TOKENIZER_KINDS)
def test_the_laws_on_every_pair_of_tokenizers(base, rm_tokenizer, adds_bos):
    model, tokenizer = reward_model(kind=rm_tokenizer, adds_bos=adds_bos), base_tokenizer(base)
    check_scorer(RetokenizingScorer(model, tokenizer), WholeTexts(model, tokenizer), rounds=1)


@pytest.mark.parametrize("options", [{"strategy": "expand"}, {"strategy": "recompute"}, {"max_tokens_per_forward": 5}])
def test_the_laws_on_every_way(options):
    model, tokenizer = reward_model(), base_tokenizer()
    check_scorer(RetokenizingScorer(model, tokenizer, **options), WholeTexts(model, tokenizer), rounds=2)


# Whole generations

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 3},
    "return_sequences": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "early_finish": {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "sequence_bias": {(EOS,): 4.0}},
}


def generate(processor, tokenizer, texts=TEXTS, **arguments):
    recorder, base = Recorder(processor), tiny_base_model(vocab_size=len(tokenizer))
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(1)
    with torch.no_grad():
        base.generate(
            **inputs,
            max_new_tokens=8,
            pad_token_id=PAD,
            suppress_tokens=[PAD],
            logits_processor=[recorder],
            **arguments,
        )
    return recorder.calls, [tokenizer(text)["input_ids"] for text in texts]


def compare(calls, reference, beta, top_k):
    """Every call against the formula on whole texts; returns how many rows were compared."""
    compared = 0
    for rows, scores, output in calls:
        mask = infer_attention_mask(rows, PAD)
        for row in range(len(rows)):
            if mask[row, -1] == 0 or rows[row, calls[0][0].shape[1] :].eq(EOS).any():
                continue
            best, ids = scores[row].topk(min(top_k, int((scores[row] > -torch.inf).sum())))
            rewards = reference.score(rows[row : row + 1], mask[row : row + 1], ids[None])[0]
            expected = (best.double().log_softmax(-1) + beta * rewards.double()).log_softmax(-1)
            assert torch.allclose(output[row, ids].double(), expected, atol=1e-4)
            compared += 1
    return compared


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_generations(kind, mode):
    model, tokenizer = reward_model(kind=kind), base_tokenizer()
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, beta=0.7, top_k=5)
    assert isinstance(processor.scorer, RetokenizingScorer)
    for _ in range(2):  # One object, called again.
        calls, _ = generate(processor, tokenizer, **MODES[mode])
        assert compare(calls, WholeTexts(model, tokenizer), 0.7, 5) >= 12


def template(prompt, answer):
    return f"Q:{prompt}\nA:{answer}"


@pytest.mark.parametrize("mode", MODES)
def test_generations_with_a_template(mode):
    model, tokenizer = reward_model(), base_tokenizer()
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, prompt_format=template, beta=0.7, top_k=5)
    for texts in (TEXTS, TEXTS[1:], TEXTS):
        calls, prompts = generate(processor, tokenizer, texts, **MODES[mode])
        assert compare(calls, WholeTexts(model, tokenizer, template, prompts), 0.7, 5) >= 10


def test_a_prompt_stays_one_when_a_single_candidate_is_drawn_without_rewards():
    """Where one token is left, no reward is needed; the scorer must be shown the rows all the same."""
    model, tokenizer = reward_model(), base_tokenizer()
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, prompt_format=template, beta=0.7, top_k=5)
    turns = iter(range(100))

    def allowed(_batch, _row):
        return [300] if next(turns) % 3 else [300, 301, 302, 303]

    calls, prompts = generate(processor, tokenizer, TEXTS[:1], prefix_allowed_tokens_fn=allowed)
    scored = [call for call in calls if (call[1] > -torch.inf).sum() > 1]
    assert 2 <= len(scored) < len(calls)
    assert compare(scored, WholeTexts(model, tokenizer, template, prompts), 0.7, 5) == len(scored)


def test_assisted_decoding():
    model, tokenizer = reward_model(), base_tokenizer()
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, prompt_format=template, beta=0.7, top_k=5)
    base, draft = (tiny_base_model(vocab_size=len(tokenizer), seed=seed) for seed in (0, 3))
    inputs = tokenizer(TEXTS[:1], return_tensors="pt", return_token_type_ids=False)
    plain = {**inputs, "max_new_tokens": 10, "suppress_tokens": [PAD], "logits_processor": [processor]}
    with torch.no_grad():
        alone = base.generate(**plain)
        assert torch.equal(alone, base.generate(**plain, assistant_model=draft))
        assert torch.equal(alone, base.generate(**plain, prompt_lookup_num_tokens=2))


# What a step costs


def count_tokens(model, act):
    read = []
    hook = model.backbone.register_forward_pre_hook(lambda _, args, __: read.append(args[0].numel()), with_kwargs=True)
    act()
    hook.remove()
    return read


def test_a_step_reads_little_more_than_the_candidates():
    model, tokenizer, text = reward_model(), base_tokenizer(), " ".join(TEXTS * 3)
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=10)
    read = count_tokens(model, lambda: generate(processor, tokenizer, [text]))
    assert len(read) == 8
    assert read[0] > len(model.tokenizer(text)["input_ids"])
    # Ten where tokens are the same; here a random base model draws tokens that are several in the other vocabulary.
    assert max(read[1:]) < 60 < read[0]


def test_rows_that_grow_unevenly_stay_cached():
    model, tokenizer = reward_model(), base_tokenizer()
    processor = PartialRewardLogitsProcessor(model, tokenizer=tokenizer, top_k=5)
    texts = [" ".join(TEXTS), " ".join(TEXTS[::-1]), "a film"]
    read = count_tokens(model, lambda: generate(processor, tokenizer, texts, do_sample=True, top_k=0))
    assert max(read[1:]) < read[0] / 2


# Long texts


def test_truncation_keeps_the_end_of_the_text():
    tokenizer, own = base_tokenizer(), tiny_tokenizer(vocab_size=340, adds_bos=True)
    model = RewardModel(tiny_reward_model(vocab_size=len(own), max_position_embeddings=64), own)
    scorer = RetokenizingScorer(model, tokenizer, on_overflow="truncate_left")
    reference = WholeTexts(model, tokenizer)
    rows = torch.tensor([tokenizer(" ".join(TEXTS))["input_ids"]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            candidates = torch.randint(5, len(tokenizer), (1, 4))
            got = scorer.score(rows, torch.ones_like(rows), candidates)[0]
            drop = num_dropped_tokens(len(own(reference.text(rows[0].tolist()))["input_ids"]) + 16, 64)
            for slot, candidate in enumerate(candidates[0].tolist()):
                ids = reference.tokens(rows[0].tolist(), candidate)
                wanted = model.score_tokens(torch.tensor([[ids[0], *ids[1 + drop :]]]))[0, -1]
                assert abs(float(got[slot] - wanted)) < 1e-4
            rows = torch.cat([rows, candidates[:, step % 4, None]], dim=1)
    assert drop > 0
    assert sum("longer than the 64 tokens" in str(warning.message) for warning in caught) == 1


def test_overflow_is_an_error_by_default():
    tokenizer, own = base_tokenizer(), tiny_tokenizer(vocab_size=340)
    model = RewardModel(tiny_reward_model(vocab_size=len(own), max_position_embeddings=32), own)
    rows = torch.tensor([tokenizer(" ".join(TEXTS))["input_ids"]])
    with pytest.raises(ContextLengthError, match="at most 32 tokens"):
        RetokenizingScorer(model, tokenizer).score(rows, torch.ones_like(rows), torch.tensor([[7, 8]]))


# Bad input


def test_a_reward_model_without_its_tokenizer():
    with pytest.raises(InvalidArgumentError, match="Expected a reward model with its tokenizer, .* Pass RewardModel"):
        RetokenizingScorer(RewardModel(tiny_reward_model()), base_tokenizer())


def test_a_row_without_text():
    scorer = RetokenizingScorer(reward_model(), base_tokenizer())
    rows = torch.tensor([[7, 8], [PAD, PAD]])
    with pytest.raises(PaddingError, match="row 1 holds only the padding token"):
        scorer.score(rows, infer_attention_mask(rows, PAD), torch.tensor([[7], [8]]))


def test_equal_vocabularies_share_ids():
    own = tiny_tokenizer()
    model = RewardModel(tiny_reward_model(vocab_size=len(own)), own)
    processor = PartialRewardLogitsProcessor(model, tokenizer=tiny_tokenizer())
    assert type(processor.scorer).__name__ == "CausalScorer"
    with_template = PartialRewardLogitsProcessor(model, tokenizer=tiny_tokenizer(), prompt_format=template)
    assert isinstance(with_template.scorer, RetokenizingScorer)
