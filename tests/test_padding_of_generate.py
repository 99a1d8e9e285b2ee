"""Which tokens of a row are padding: right, or an error that says what to pass, and never a guess."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from oracle import Oracle, Recorder, Rewards, count_reads, padded

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, Scorer, WeightedScorer
from rgtg_logits.errors import PaddingError
from rgtg_logits.pad_token import find_pad_token
from rgtg_logits.padding import PaddingReader, PadToken
from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE, tiny_base_model, tiny_config, tiny_reward_model, tiny_tokenizer

OTHER_PAD = 60
RAGGED = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]
EVEN = [[7, 3, 9, 11], [5, 8, 4, 4], [2, 13, 40, 41]]


class Write:
    """Makes certain rows continue with certain tokens, by their scores: as text that is drawn."""

    def __init__(self, width, tokens):
        self.width, self.tokens = width, tokens

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for row, step in self.tokens:
            if input_ids.shape[1] - self.width == step:
                scores[row] = torch.randn(VOCAB_SIZE) - 20
                scores[row, self.tokens[row, step]] = 20.0
        return scores


def run(processor, prompts, base_pad, write=None, **arguments):
    """Calls of `generate` in a base model that pads with a token."""
    inputs = padded(prompts, base_pad)
    recorder = Recorder(processor)
    before = [Write(inputs["input_ids"].shape[1], write)] if write else []
    torch.manual_seed(1)
    with torch.no_grad():
        tiny_base_model(pad_token_id=None).generate(
            **inputs, **{"do_sample": True, "top_k": 0, "max_new_tokens": 8, "eos_token_id": EOS, **arguments},
            pad_token_id=base_pad, logits_processor=[*before, recorder],
        )  # fmt: skip
    return recorder.calls


def processor_of(model, **arguments):
    return PartialRewardLogitsProcessor(model, beta=0.7, top_k=5, **arguments)


def check_every_row(model, calls, prompts):
    """Compares every row of every call, finished or not, as text behind the prompt; returns how many."""
    compared = Oracle(model, beta=0.7, top_k=5, pad=-5, eos=-5).check(calls, prompts)[0]
    assert compared == sum(len(rows) for rows, _, _ in calls)
    return compared


# The beginning of rows


@pytest.mark.parametrize("base_pad", [EOS, OTHER_PAD, 33])
@pytest.mark.parametrize("own_pad", [PAD, EOS, -1, None])
def test_rows_that_another_token_pads_are_refused(base_pad, own_pad):
    processor = processor_of(tiny_reward_model(pad_token_id=own_pad))
    with pytest.raises(PaddingError, match=r"Expected to know which token pads, .* 3 rows .* attention_mask=, pad_tok"):
        run(processor, RAGGED, base_pad)
    assert processor.pad_token_id == (None if own_pad == -1 else own_pad)


@pytest.mark.parametrize("told", ["pad_token_id", "attention_mask", "tokenizer"])
@pytest.mark.parametrize("base_pad", [EOS, OTHER_PAD])
def test_what_the_user_says_is_believed(base_pad, told):
    model, tokenizer = tiny_reward_model(pad_token_id=2), tiny_tokenizer(vocab_size=VOCAB_SIZE)
    tokenizer.pad_token_id = OTHER_PAD
    given = {
        "pad_token_id": base_pad,
        "attention_mask": padded(RAGGED, base_pad)["attention_mask"],
        "tokenizer": tokenizer,
    }
    if told == "tokenizer" and base_pad == EOS:
        pytest.skip("it names another token")
    calls = run(processor_of(model, **{told: given[told]}), RAGGED, base_pad)
    assert Oracle(model, beta=0.7, top_k=5, pad=base_pad, eos=EOS).check(calls, RAGGED)[0] >= 10


@pytest.mark.parametrize("own_pad", [PAD, EOS, None])
def test_a_single_row_is_text(own_pad):
    """Also if it begins with the token that begins, ends and pads texts (GPT-2)."""
    model = tiny_reward_model(pad_token_id=own_pad)
    prompt = [EOS, EOS, 3, 9, 11]
    calls = run(processor_of(model), [prompt], PAD, suppress_tokens=[EOS])
    assert check_every_row(model, calls, [prompt]) == 8


@pytest.mark.parametrize("own_pad", [PAD, EOS, None])
@pytest.mark.parametrize("mode", [{}, {"do_sample": False, "num_beams": 3}, {"num_return_sequences": 3}])
def test_rows_that_begin_alike_are_text(own_pad, mode):
    model = tiny_reward_model(pad_token_id=own_pad)
    prompts = [[EOS, 3, 9, 11], [EOS, 5, 8, 2]]
    calls = run(processor_of(model), prompts, PAD, suppress_tokens=[EOS], **mode)
    assert check_every_row(model, calls, prompts) >= 16


def test_a_leading_run_of_a_dedicated_pad_token_is_padding_in_a_single_row_too():
    model = tiny_reward_model()
    ids = torch.tensor([[PAD, PAD, 7, 3]])
    scores = torch.randn(1, VOCAB_SIZE)
    processor = processor_of(model)
    torch.testing.assert_close(processor(ids, scores), processor(ids[:, 2:], scores), atol=1e-5, rtol=1e-5)


def test_rows_of_a_dedicated_pad_token_may_begin_with_anything():
    model = tiny_reward_model()
    prompts = [[EOS, EOS, 9, 11], [5, 8], [4, 4, 4]]
    calls = run(processor_of(model), prompts, PAD, suppress_tokens=[PAD, EOS])
    assert Oracle(model, beta=0.7, top_k=5, pad=PAD, eos=-5).check(calls, prompts)[0] == 24


@pytest.mark.parametrize("own_pad", [EOS, None])
@pytest.mark.parametrize("mode", [{"num_return_sequences": 4}, {"do_sample": False, "num_beams": 4}])
def test_prompts_of_one_token_are_not_refused_later(own_pad, mode):
    """An answer may begin with the prompt's only token, which then looks like padding."""
    model = tiny_reward_model(pad_token_id=own_pad)
    bias = {"sequence_bias": {(5,): 4.0}, "suppress_tokens": [EOS]}
    calls = run(processor_of(model), [[5]], PAD, **mode, **bias)
    assert any((rows[:, 0] == rows[:, 1]).any() for rows, _, _ in calls[1:])
    assert check_every_row(model, calls, [[5]]) >= 32


def test_a_prompt_of_nothing_but_a_token_that_pads_for_certain():
    with pytest.raises(PaddingError, match="row 0 holds only the padding token"):
        run(processor_of(tiny_reward_model()), [[PAD, PAD]], PAD)


# The end of rows


@pytest.mark.parametrize("given", [{}, {"pad_token_id": PAD}, {"attention_mask": torch.ones(3, 4).long()}])
def test_a_word_that_pads_is_text_where_it_was_drawn(given):
    """The pad token's text is '!' (GPT-2: 0), and an answer holds '!!!'."""
    model = tiny_reward_model()
    write = {(1, step): PAD for step in (2, 3, 4)}
    calls = run(processor_of(model, **given), EVEN, 60, write, suppress_tokens=[EOS])
    assert calls[-1][0][1, 6:9].tolist() == [PAD] * 3
    assert check_every_row(model, calls, EVEN) == 24


@pytest.mark.parametrize("given", [{}, {"attention_mask": torch.ones(3, 4).long()}])
@pytest.mark.parametrize("own_pad", [PAD, EOS])
def test_text_that_goes_on_behind_its_end(own_pad, given):
    """As with ignore_eos: the end-of-text token, several times, and then more."""
    model = tiny_reward_model(pad_token_id=own_pad)
    write = {(0, 2): EOS, (0, 3): EOS, (0, 4): EOS, (1, 1): EOS}
    calls = run(processor_of(model, **given), [[9, *row[1:]] for row in EVEN], 60, write, eos_token_id=None)
    assert calls[-1][0][0, 6:9].tolist() == [EOS] * 3
    assert check_every_row(model, calls, [[9, *row[1:]] for row in EVEN]) == 24


class Counting(Scorer):
    """Counts the rows that it reads at each call; its reward model ends texts with EOS."""

    reward_model = SimpleNamespace(text_config=tiny_config("llama"), tokenizer=None)

    def __init__(self, pad_token_id):
        self.pad_token_id, self.rows = pad_token_id, []

    def score(self, rows, attention_mask, candidates):
        self.rows.append(int(attention_mask[:, -1].sum()))
        assert attention_mask.any(-1).all(), "a finished row lost its text"
        return candidates / 10


ENDS = {(1, 2): EOS, (2, 4): EOS}


@pytest.mark.parametrize("rest", ["drop", "keep"])
@pytest.mark.parametrize("base_pad", [PAD, EOS])
@pytest.mark.parametrize("told", [{}, {"pad_token_id": None}, {"attention_mask": torch.ones(3, 4).long()}])
def test_finished_rows_cost_nothing(base_pad, told, rest):
    """A row is asked about once more, at its end; then it has finished, whichever token pads."""
    given = {"pad_token_id": base_pad} if "pad_token_id" in told else told
    if rest == "keep" and base_pad == EOS and "pad_token_id" not in told:
        pytest.skip("a token of the tail may be drawn behind an end, so nothing proves that it was not")
    scorer = Counting(PAD)
    processor = PartialRewardLogitsProcessor(scorer, top_k=5, rest=rest, **given)
    prompts = [[9, *row[1:]] for row in EVEN]
    # Behind its end, a row's scores are random, and the token that pads is not among the best five.
    after = {(row, step): 30 + step for row, end in ((1, 2), (2, 4)) for step in range(end + 1, 9)}
    calls = run(processor, prompts, base_pad, {**ENDS, **after}, suppress_tokens=None)
    assert calls[-1][0][1, 7:].tolist() == [base_pad] * 4
    assert scorer.rows == [3, 3, 3, 3, 2, 2, 1, 1]


def test_finished_rows_of_a_reward_model_with_another_pad_token():
    """The end token is the reward model's own, so that nothing has to be passed."""
    reward_model = RewardModel(tiny_reward_model(pad_token_id=OTHER_PAD))
    prompts = [[9, *row[1:]] for row in EVEN]
    after = {(row, step): 30 + step for row, end in ((1, 2), (2, 4)) for step in range(end + 1, 9)}
    calls, reads = count_reads(
        reward_model.backbone, lambda: run(processor_of(reward_model), prompts, EOS, {**ENDS, **after})
    )
    assert reads[-1] == 5, "one row of five candidates"
    oracle = Oracle(Rewards(reward_model.model), beta=0.7, top_k=5, pad=OTHER_PAD, eos=EOS)
    assert oracle.check(calls, prompts)[0] >= 14


@pytest.mark.parametrize("given", [{}, {"pad_token_id": PAD}])
def test_rows_that_stop_without_an_end(given):
    """Stop strings: the row ends anywhere, and its padding is not among the candidates."""
    scorer = Counting(PAD)
    rows, scores = torch.tensor([[7, 3], [5, 8]]), torch.randn(2, VOCAB_SIZE)
    scores[:, PAD] = -20.0
    processor = PartialRewardLogitsProcessor(scorer, top_k=5, **given)
    for _ in range(4):
        best = processor(rows, scores).argmax(-1)
        rows = torch.cat([rows, torch.tensor([[int(best[0])], [PAD]])], dim=1)
    assert scorer.rows == [2, 1, 1, 1]


def test_finished_rows_change_places():
    """As beams do; and another batch in between, as by another thread."""
    reader = PaddingReader(PadToken(PAD, is_dedicated=True, ends=frozenset([EOS])))
    rows, candidates = torch.tensor([[7, 3, EOS], [5, 8, 4]]), torch.tensor([[10, 11], [12, 13]])
    reader.remember(rows, reader.read(rows), candidates, False)
    others = torch.tensor([[9, 9, 9], [8, 8, 8]])
    reader.remember(others, reader.read(others), candidates, False)
    now = torch.tensor([[5, 8, 4, 13], [7, 3, EOS, PAD], [7, 3, EOS, 11]])
    read = reader.read(now)
    assert read.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    reader.remember(now, read, candidates[[1, 0, 0]], False)
    later = torch.cat([now[[1, 1, 2]], torch.tensor([[PAD], [9], [10]])], dim=1)
    # A row whose padding is followed by something else was none.
    assert reader.read(later).finished.tolist() == [2, 0, 0]


def test_a_new_prompt_that_looks_like_a_finished_row_is_text():
    model = tiny_reward_model()
    processor = processor_of(model)
    rows, scores = torch.tensor([[7, 3, EOS, PAD], [5, 8, EOS, PAD]]), torch.randn(2, VOCAB_SIZE)
    output = processor(rows, scores)
    expected = torch.cat([processor(rows[row : row + 1], scores[row : row + 1]) for row in range(2)])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    kept = output[0] > -torch.inf
    assert (output[0][kept] - scores[0][kept].log_softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda processor: pickle.loads(pickle.dumps(processor))])
def test_copies_of_a_processor_that_has_seen_rows(copied):
    processor = processor_of(tiny_reward_model())
    rows, scores = torch.tensor([[7, 3], [5, 8]]), torch.randn(2, VOCAB_SIZE)
    expected = processor(rows, scores)
    torch.testing.assert_close(copied(processor)(rows, scores), expected, atol=1e-5, rtol=1e-5)


# Which token it is


@pytest.mark.parametrize("given", [None, -1])
def test_where_the_pad_token_comes_from(given):
    model, tokenizer = RewardModel(tiny_reward_model(pad_token_id=4)), tiny_tokenizer()
    scorer = PartialRewardLogitsProcessor(model).scorer
    of_model = find_pad_token(given, None, scorer, [17])
    assert (of_model.id, of_model.is_given, of_model.is_dedicated) == (4, False, True)
    assert of_model.ends == {EOS, 17}
    assert find_pad_token(given, None, WeightedScorer([model], [1.0]), None).ends == {EOS}
    of_tokenizer = find_pad_token(given, tokenizer, scorer, None)
    assert (of_tokenizer.id, of_tokenizer.is_given) == (tokenizer.pad_token_id, True)
    tokenizer.pad_token = tokenizer.eos_token
    assert not find_pad_token(given, tokenizer, scorer, None).leads
    assert find_pad_token(9, tokenizer, scorer, None).is_given
