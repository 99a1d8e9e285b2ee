"""Weighted sums: each reward once, the right prompt and response, and every mistake with a message."""

import threading
import time

import pytest
import torch
from oracle import Recorder

from rgtg_logits import (
    CausalScorer,
    PartialRewardLogitsProcessor,
    ReferenceScorer,
    RetokenizingScorer,
    RewardModel,
    RewardModelConfig,
    Scorer,
    VocabularyScorer,
    WeightedScorer,
)
from rgtg_logits.errors import InvalidArgumentError, NonFiniteRewardError
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.testing import EOS, PAD, check_scorer, tiny_base_model, tiny_reward_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer(vocab_size=420)
SIZE = len(TOKENIZER)
BETA, TOP_K = 0.7, 5
PROMPTS = [TOKENIZER(text)["input_ids"] for text in ("the film was good, 映", "a café", "the end")]
MODES = {
    "ragged": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "sequence_bias": {(EOS,): 2.0}},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


def reward_model(seed=1):
    return RewardModel(tiny_reward_model(vocab_size=SIZE, seed=seed))


def judge(prompts, responses):
    """Depends on both texts, and on which is which."""
    return [(len(p) % 7) * 0.3 + sum(map(ord, r[-3:])) % 11 * 0.2 for p, r in zip(prompts, responses, strict=True)]


def whole(prompts, responses):
    """Depends on the whole text alone."""
    return [sum(map(ord, p + r)) % 101 / 20 for p, r in zip(prompts, responses, strict=True)]


class Whole(Scorer):
    """The rewards of `whole`, one candidate at a time, from all tokens."""

    vocab_size = SIZE

    def score(self, rows, attention_mask, candidates):
        rewards = torch.zeros(candidates.shape)
        for row in attention_mask[:, -1].nonzero()[:, 0].tolist():
            for slot, token in enumerate(candidates[row].tolist()):
                text = TOKENIZER.decode([*rows[row][attention_mask[row].bool()], token], skip_special_tokens=True)
                rewards[row, slot] = whole([text.rstrip("\ufffd")], [""])[0]
        return rewards


def score(scorer, rows, candidates):
    rows, candidates = torch.as_tensor(rows), torch.as_tensor(candidates)
    return scorer.score(rows, infer_attention_mask(rows, PAD), candidates)


def test_the_laws():
    one, other = reward_model(), reward_model(2)
    scorer = WeightedScorer([one, CausalScorer(other), whole], [0.5, -2, 1.0], tokenizer=TOKENIZER)
    reference = WeightedScorer([ReferenceScorer(one), ReferenceScorer(other), Whole()], [0.5, -2, 1.0])
    check_scorer(scorer, reference)


def test_the_laws_of_functions_alone():
    check_scorer(WeightedScorer([whole], [1.0], tokenizer=TOKENIZER), Whole(), vocab_size=SIZE, tolerance=1e-5)


class Oracle:
    """Knows the prompts, and computes what the processor has to answer from whole rows."""

    def __init__(self, model, weights):
        self.model, self.weights = model, weights

    @torch.no_grad()
    def reward(self, prompt, answer):
        prompt_text = TOKENIZER.decode(prompt, skip_special_tokens=True).rstrip("\ufffd")
        text = TOKENIZER.decode(prompt + answer, skip_special_tokens=True).rstrip("\ufffd")
        assert text.startswith(prompt_text)
        logit = self.model(torch.tensor([prompt + answer])).logits[0, 0]
        return self.weights[0] * float(logit) + self.weights[1] * judge([prompt_text], [text[len(prompt_text) :]])[0]

    def check(self, calls, prompts):
        width, compared = calls[0][0].shape[1], 0
        for rows, scores, output in calls:
            for index, row in enumerate(rows.tolist()):
                prompt, answer = prompts[index // (len(rows) // len(prompts))], row[width:]
                if EOS in answer:
                    continue
                candidates = scores[index].topk(TOP_K).indices.tolist()
                rewards = torch.tensor([self.reward(prompt, [*answer, token]) for token in candidates])
                expected = (scores[index][candidates].log_softmax(-1) + BETA * rewards).log_softmax(-1)
                assert torch.allclose(output[index][candidates], expected, atol=1e-4)
                compared += 1
        return compared


@pytest.mark.parametrize("mode", MODES)
def test_every_call_of_generate_equals_an_oracle_that_knows_the_prompts(mode):
    model, base = tiny_reward_model(vocab_size=SIZE, pad_token_id=PAD), tiny_base_model(vocab_size=SIZE)
    scorer = WeightedScorer([RewardModel(model), judge], [0.8, 1.5], tokenizer=TOKENIZER)
    processor = PartialRewardLogitsProcessor(scorer, beta=BETA, top_k=TOP_K)
    for prompts in (PROMPTS, PROMPTS[1:2], PROMPTS):
        width, recorder = max(map(len, prompts)), Recorder(processor)
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        options = {"max_new_tokens": 6, "top_k": 0, "pad_token_id": PAD, "suppress_tokens": [PAD], **MODES[mode]}
        with torch.no_grad():
            base.generate(input_ids=ids, attention_mask=(ids != PAD).long(), logits_processor=[recorder], **options)
        assert Oracle(model, [0.8, 1.5]).check(recorder.calls, prompts) >= 4


class Counting(Scorer):
    vocab_size, pad_token_id = 50, 3

    def __init__(self, **attributes):
        self.calls = 0
        self.__dict__.update(attributes)

    def score(self, rows, attention_mask, candidates):
        self.calls += 1
        return candidates.float()


def test_every_distinct_reward_is_computed_once():
    counting, calls = Counting(), []

    def function(prompts, responses):
        calls.append(list(zip(prompts, responses, strict=True)))
        return torch.tensor([[1.0]] * len(prompts))[:, 0]

    scorer = WeightedScorer([counting, function, counting, function], [1, 1, 2, 3], tokenizer=TOKENIZER)
    prompt = TOKENIZER("the film")["input_ids"]
    word = TOKENIZER(" was")["input_ids"][0]
    candidates = [[word, EOS, PAD, word]] * 3
    rewards = score(scorer, [prompt, prompt, [*prompt[:-2], PAD, PAD]], candidates)
    assert counting.calls == 1
    # Special tokens add nothing, so that there are two responses; equal rows and the finished row add none.
    assert calls == [[("the film", TOKENIZER.decode([word])), ("the film", "")]]
    expected = 3 * torch.tensor(candidates).float()
    expected[:2] += 4
    assert torch.equal(rewards, expected)


def test_finished_rows_alone_cost_no_call():
    def uncallable(prompts, responses):
        raise AssertionError("the function was called")

    scorer = WeightedScorer([uncallable], [1.0], tokenizer=TOKENIZER)
    assert (score(scorer, [[60, EOS, PAD, PAD]], [[61, 62]]) == 0).all()


def test_the_answer_so_far_is_judged_when_the_text_ends():
    calls = []
    scorer = WeightedScorer([lambda *pairs: calls.append(pairs) or [0.0] * len(pairs[0])], [1.0], tokenizer=TOKENIZER)
    prompt, (word, more) = TOKENIZER("the film")["input_ids"], TOKENIZER(" was bad")["input_ids"][:2]
    score(scorer, [prompt], [[word, EOS]])
    score(scorer, [[*prompt, word]], [[more, EOS]])
    responses = [TOKENIZER.decode(tokens) for tokens in ([word, more], [word])]
    assert calls[1] == (["the film"] * 2, responses)


def test_the_smallest_vocabulary_and_the_pad_token_that_is_known():
    class Unknown(Scorer):
        def score(self, rows, attention_mask, candidates):
            return candidates.float()

    scorer = WeightedScorer([Unknown(), Counting(), Counting(vocab_size=40)], [1, 1, 1])
    assert (scorer.vocab_size, scorer.pad_token_id) == (40, 3)
    scorer = WeightedScorer([Unknown()], [1])
    assert (scorer.vocab_size, scorer.pad_token_id) == (None, None)
    scorer = WeightedScorer([Counting(), Counting(pad_token_id=4)], [1, 1], tokenizer=TOKENIZER)
    assert scorer.pad_token_id == PAD


def test_threads_take_turns():
    inside, overlaps = [], []

    def slow(prompts, responses):
        inside.append(1)
        overlaps.append(len(inside) > 1)
        time.sleep(0.01)
        inside.pop()
        return [0.0] * len(prompts)

    scorer = WeightedScorer([slow], [1.0], tokenizer=TOKENIZER)
    threads = [threading.Thread(target=score, args=(scorer, [[60 + i, 61]], [[62, 63]])) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "one weight for each scorer, and at least one scorer, but got 0 scorers and 0 weights"),
        (([Counting()], [1, 2]), "one weight for each scorer, .* but got 1 scorers and 2 weights"),
        (([Counting()], [float("nan")]), "Expected weights to be finite numbers, but got nan"),
        (([Counting()], ["1"]), "Expected weights to be finite numbers, but got '1'"),
        (([7], [1]), "Expected scorers to be reward models, .* but got 7"),
        (([Counting], [1]), "Expected scorers to be reward models, Hub ids, folders, Scorer objects or functions"),
        (([Counting(), judge], [1, 1]), "Expected the base model's tokenizer, because judge judges text, but got none"),
        (
            ([Counting(), Counting(pad_token_id=4)], [1, 1]),
            r"agree on which token pads .* they name \[3, 4\]. Pass tok",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        WeightedScorer(*arguments)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], r"to return 2 rewards, one for each pair of prompt and response, but got shape \(1,\)"),
        (torch.zeros(2, 1), r"but got shape \(2, 1\). Return a list of floats or a tensor of one axis"),
        (None, "to return a sequence of 2 numbers, but got NoneType"),
        (["a", "b"], "to return a sequence of 2 numbers, but got list"),
        (1.0, r"but got shape \(\)"),
    ],
)
def test_bad_answers(answer, message):
    scorer = WeightedScorer([lambda prompts, responses: answer], [1.0], tokenizer=TOKENIZER)
    with pytest.raises(InvalidArgumentError, match=message):
        score(scorer, [[60, 61]], [[70, 71]])


def test_rewards_that_are_not_finite():
    def broken(prompts, responses):
        return [float("inf") if response == TOKENIZER.decode([71]) else 0.0 for response in responses]

    with pytest.raises(NonFiniteRewardError, match=r"reward of row 1 with token 71 is inf, by .*broken. Let it return"):
        score(WeightedScorer([Whole(), broken], [1, 0], tokenizer=TOKENIZER), [[60, 61]] * 2, [[70, 72], [70, 71]])
    with pytest.raises(NonFiniteRewardError, match="reward of row 0 with token 5 is inf, by the weighted sum"):
        score(WeightedScorer([Counting()], [1e38]), [[60, 61]], [[1, 5]])


def test_models_are_taken_as_they_are():
    model = tiny_reward_model(vocab_size=SIZE)
    rows, candidates = [[60, 61, 62]], [[70, 71]]
    got = score(WeightedScorer([model, RewardModel(model)], [1, 2]), rows, candidates)
    assert torch.allclose(got, 3 * score(ReferenceScorer(RewardModel(model)), rows, candidates), atol=1e-4)


@pytest.mark.parametrize("rewards", [(0.5, 1), [torch.tensor(0.5), torch.tensor(1.0)], torch.tensor([0.5, 1.0]).half()])
def test_whatever_holds_numbers_is_a_sequence_of_rewards(rewards):
    scorer = WeightedScorer([lambda prompts, responses: rewards], [2.0], tokenizer=TOKENIZER)
    assert score(scorer, [[60, 61]], [[70, 71]]).tolist() == [[1.0, 2.0]]


def test_a_prompt_stays_one_when_a_single_candidate_is_drawn_without_rewards():
    """Where one token is left, no reward is needed; the scorer must be shown the rows all the same."""
    tokenizer = tiny_tokenizer()
    base, pairs = tiny_base_model(vocab_size=len(tokenizer)), []

    def judge(prompts, responses):
        pairs.extend(zip(prompts, responses, strict=True))
        return [0.1 * len(response) for response in responses]

    turns = iter(range(100))
    processor = PartialRewardLogitsProcessor(WeightedScorer([judge], [1.0], tokenizer=tokenizer), top_k=5)
    with torch.no_grad():
        base.generate(
            **tokenizer("the film", return_tensors="pt", return_token_type_ids=False), max_new_tokens=8,
            prefix_allowed_tokens_fn=lambda *_: [290] if next(turns) % 3 else [290, 291, 292],
            logits_processor=[processor],
        )  # fmt: skip
    assert len(pairs) >= 6
    assert {prompt for prompt, _ in pairs} == {"the film"}


def test_models_get_the_scorer_of_their_kind(tmp_path):
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer(kind="llama2")
    vocabulary = RewardModel(tiny_base_model(vocab_size=400), tokenizer, config=RewardModelConfig(kind="vocabulary"))
    reader = RewardModel(tiny_reward_model(vocab_size=len(other)), other)
    RewardModel(tiny_reward_model(vocab_size=400), tokenizer).save_pretrained(tmp_path)
    scorer = WeightedScorer([vocabulary, reader, str(tmp_path)], [1.0, 0.5, -0.3], tokenizer=tokenizer)
    parts = [
        VocabularyScorer(vocabulary),
        RetokenizingScorer(reader, tokenizer),
        CausalScorer(RewardModel.from_pretrained(tmp_path)),
    ]
    rows = torch.randint(5, len(tokenizer), (2, 6))
    question = rows, torch.ones_like(rows), torch.randint(5, len(tokenizer), (2, 4))
    expected = sum(weight * part.score(*question) for weight, part in zip([1.0, 0.5, -0.3], parts, strict=True))
    assert torch.allclose(scorer.score(*question), expected, atol=1e-5)
