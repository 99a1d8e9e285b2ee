"""Settings with an entry for each row or prompt: every row is guided as if it were alone with its own settings."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from oracle import Oracle, Recorder, Rewards, count_reads, padded

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, Scorer
from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.guidance import GuidanceSettings, guide, guide_with_tail
from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE, tiny_base_model, tiny_reward_model

PROMPTS = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41], [6, 6, 9]]
SETTINGS = [
    {"beta": 0.0, "top_k": 9, "top_p": 1.0, "min_p": 0.0, "rest": "drop"},
    {"beta": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "rest": "drop"},
    {"beta": 3.0, "top_k": 2, "top_p": 1.0, "min_p": 0.2, "rest": "keep"},
    {"beta": 1.5, "top_k": 61, "top_p": 0.5, "min_p": 0.01, "rest": "keep"},
]
FORMS = {
    "tensor": torch.tensor,
    "column": lambda values: torch.tensor(values)[:, None],
    "array": np.array,
    "list": list,
}


def columns(form=torch.tensor, settings=SETTINGS):
    numbers = {name: form([row[name] for row in settings]) for name in ("beta", "top_k", "top_p", "min_p")}
    return {**numbers, "rest": [row["rest"] for row in settings]}


def of_row(scores, rewards, settings):
    """The policy of one row by the formula over the whole vocabulary, in double precision."""
    base = scores.double().log_softmax(-1)
    best = base.sort(descending=True, stable=True)
    probability = best.values[: settings["top_k"]].softmax(-1)
    kept = probability.cumsum(-1) - probability < settings["top_p"]
    kept &= probability >= settings["min_p"] * probability[0]
    ids = best.indices[: settings["top_k"]][kept]
    given = torch.tensor([rewards[int(token)] for token in ids], dtype=torch.float64)
    tail = float((base[ids].softmax(-1) * given).sum()) if settings["rest"] == "keep" else -torch.inf
    total = torch.full_like(base, settings["beta"] * tail if tail > -torch.inf else tail)
    total[ids] = settings["beta"] * given
    return (base + total).log_softmax(-1)


@pytest.mark.parametrize("form", FORMS)
def test_each_row_is_guided_as_if_alone(form):
    model = tiny_reward_model()
    rewards = Rewards(model)
    processor = PartialRewardLogitsProcessor(model, **columns(FORMS[form]))
    inputs, scores = padded(PROMPTS, PAD), torch.randn(4, VOCAB_SIZE)
    output = processor(inputs["input_ids"], scores)
    for row, settings in enumerate(SETTINGS):
        alone = PartialRewardLogitsProcessor(model, **settings)(torch.tensor([PROMPTS[row]]), scores[row : row + 1])
        torch.testing.assert_close(output[row], alone[0], atol=1e-5, rtol=1e-5)
        by_token = {token: rewards[(*PROMPTS[row], token)] for token in range(VOCAB_SIZE)}
        expected = of_row(scores[row], by_token, settings)
        torch.testing.assert_close(output[row].double(), expected, atol=1e-5, rtol=1e-5)


MODES = {
    "greedy": {},
    "return sequences": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_generate_spreads_the_entries_of_prompts(mode):
    model, base = tiny_reward_model(), tiny_base_model()
    betas, ks, prompts = [0.0, 2.0, 0.5], [6, 8, 7], PROMPTS[:3]
    processor = PartialRewardLogitsProcessor(model, beta=torch.tensor(betas), top_k=torch.tensor(ks))
    recorder = Recorder(processor)
    arguments = {**MODES[mode], "max_new_tokens": 6, "suppress_tokens": [PAD], "pad_token_id": PAD}
    base.generate(**padded(prompts, PAD), logits_processor=[recorder], **arguments)
    per_prompt = recorder.calls[0][0].shape[0] // 3
    rewards = Rewards(model)
    for prompt, (beta, k) in enumerate(zip(betas, ks, strict=True)):
        places = slice(prompt * per_prompt, (prompt + 1) * per_prompt)
        calls = [tuple(part[places] for part in call) for call in recorder.calls]
        assert Oracle(rewards, beta=beta, top_k=k, pad=PAD, eos=EOS).check(calls, [prompts[prompt]])[0] >= 4


def test_rows_of_strength_zero_cost_nothing():
    reward_model = RewardModel(tiny_reward_model())
    rows, scores = torch.tensor(PROMPTS[:1] * 2 + [PROMPTS[0][::-1]]), torch.randn(3, VOCAB_SIZE)

    def reads(beta, rows=rows, scores=scores):
        processor = PartialRewardLogitsProcessor(reward_model, beta=beta, top_k=5)
        return count_reads(reward_model.backbone, lambda: processor(rows, scores))

    _, mixed = reads([0.0, 0.0, 1.0])
    _, alone = reads(1.0, rows[2:], scores[2:])
    assert mixed == alone
    output, none = reads([0.0, 0.0, 0.0])
    assert none == []
    assert torch.equal(output, reads(0.0)[0])


class Counting(Scorer):
    pad_token_id = PAD

    def __init__(self):
        self.asked = []

    def score(self, rows, attention_mask, candidates):
        self.asked.append((rows.shape[0], candidates.shape[1]))
        return candidates / 10


def test_rows_are_asked_about_their_own_candidates():
    """The widest row of strength 0 does not make the others wider."""
    scorer = Counting()
    processor = PartialRewardLogitsProcessor(scorer, beta=[0.0, 1.0, 2.0], top_k=[40, 3, 4])
    processor(torch.tensor([[7, 3], [5, 8], [2, 13]]), torch.randn(3, VOCAB_SIZE))
    assert scorer.asked == [(2, 4)]


def test_other_settings_share_everything_and_cost_nothing():
    reward_model = RewardModel(tiny_reward_model())
    processor = PartialRewardLogitsProcessor(reward_model, beta=1.0, top_k=5, min_p=0.01)
    rows, scores = torch.tensor([PROMPTS[0]]), torch.randn(1, VOCAB_SIZE)
    processor(rows, scores)
    other, reads = count_reads(
        reward_model.backbone, lambda: processor.with_settings(beta=3.0, top_p=0.8, min_p=None, rest="keep")
    )
    assert reads == []
    assert other.scorer is processor.scorer and other._lock is processor._lock
    assert (other.beta, other.rule, other.rest) == (3.0, CandidateRule(top_k=5, top_p=0.8), "keep")
    assert (processor.beta, processor.rule, processor.rest) == (1.0, CandidateRule(top_k=5, min_p=0.01), "drop")
    output, reads = count_reads(reward_model.backbone, lambda: other(rows, scores))
    # The prompt is in the cache already.
    assert sum(reads) <= 5 + 1
    expected = PartialRewardLogitsProcessor(reward_model, beta=3.0, top_k=5, top_p=0.8, rest="keep")(rows, scores)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_requests_with_their_own_settings_in_threads():
    model, base = tiny_reward_model(), tiny_base_model()
    shared = PartialRewardLogitsProcessor(model, top_k=5)

    def request(beta):
        recorder = Recorder(shared.with_settings(beta=beta))
        base.generate(
            **padded(PROMPTS, PAD), max_new_tokens=6, pad_token_id=PAD, suppress_tokens=[PAD],
            logits_processor=[recorder],
        )  # fmt: skip
        return recorder.calls

    betas = [0.0, 0.5, 1.0, 4.0]
    with ThreadPoolExecutor(len(betas)) as threads:
        for beta, calls in zip(betas, threads.map(request, betas), strict=True):
            assert Oracle(model, beta=beta, top_k=5, pad=PAD, eos=EOS).check(calls, PROMPTS)[0] >= 8


@pytest.mark.parametrize(
    "settings", [{"beta": [1.0, 2.0]}, {"top_k": [3, 4]}, {"rest": ["keep", "drop"]}, {"min_p": [0.1, 0.2]}]
)
def test_entries_that_do_not_fit_the_rows(settings):
    processor = PartialRewardLogitsProcessor(Counting(), **settings)
    with pytest.raises(InvalidArgumentError, match="got 2 entries for 3 rows. Pass one number .* or a tensor with one"):
        processor(torch.tensor([[7, 3], [5, 8], [2, 13]]), torch.randn(3, VOCAB_SIZE))
    assert processor(torch.tensor([[7, 3], [5, 8]] * 2), torch.randn(4, VOCAB_SIZE)).shape == (4, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": [1.0, -1.0]}, r"Expected beta to be .* but got \[1.0, -1.0\]"),
        ({"beta": torch.tensor([1.0, float("nan")])}, "Expected beta to be"),
        ({"top_k": [5, 0]}, "Expected top_k to be"),
        ({"top_k": torch.tensor([5.0, 2.0])}, "Expected top_k to be"),
        ({"top_p": [0.5, 1.5]}, "Expected top_p to be"),
        ({"min_p": [0.5, -0.1]}, "Expected min_p to be"),
        ({"rest": ["keep", "cut"]}, "Expected rest to be one of drop, keep"),
        ({"rest": []}, "Expected rest to be one of drop, keep"),
    ],
)
def test_entries_out_of_range(settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PartialRewardLogitsProcessor(Counting(), **settings)
    with pytest.raises(InvalidArgumentError, match=message):
        PartialRewardLogitsProcessor(Counting()).with_settings(**settings)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_the_formulas_take_columns(shape):
    scores, beta = torch.randn(3, 12), torch.tensor([0.0, 1.0, 5.0])
    candidates = CandidateRule(top_k=torch.tensor([2, 4, 1]).reshape(shape)).select(scores)
    rewards = torch.randn(3, 4)
    for row in range(3):
        alone = CandidateRule(top_k=[2, 4, 1][row]).select(scores[row : row + 1])
        given, k = rewards[row : row + 1, : alone.ids.shape[1]], alone.ids.shape[1]
        assert torch.equal(candidates.ids[row, :k], alone.ids[0])
        cut = guide(candidates, rewards, beta.reshape(shape))[row]
        torch.testing.assert_close(cut[:k], guide(alone, given, float(beta[row]))[0])
        assert (cut[k:] == -torch.inf).all()
        kept = guide_with_tail(candidates, rewards, beta.reshape(shape), scores)[row]
        expected = guide_with_tail(alone, given, float(beta[row]), scores[row : row + 1])[0]
        torch.testing.assert_close(kept, expected)


def test_settings_without_entries_are_not_spread():
    settings = GuidanceSettings(beta=1.0, rule=CandidateRule(), rest="drop")
    assert settings.for_rows(7) is settings
