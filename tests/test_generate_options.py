"""Options of `generate`: each call of the processor equals the oracle, and the rest of `generate` does its part."""

import pytest
import torch
from oracle import Oracle, Recorder, padded, support
from transformers import StoppingCriteria, WatermarkingConfig

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model

BETA, TOP_K, NEW = 0.7, 5, 8
RAGGED = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]


class EndsAt(StoppingCriteria):
    """Ends each row by itself, without an end-of-text token, when a token of its own appears."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1:] == self.tokens).any(-1)


def one_or_several(batch, row):
    """A grammar that allows one token in the first row, several in the second, and either by turns in the third."""
    several = [5, 8, 13, 20, 21, 34, 40, 55][: 3 + len(row) % 3]
    return [9] if batch == 0 or (batch == 2 and len(row) % 2) else several


OPTIONS = {
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5, 8], [20], [31], [40, 41]], "do_sample": True},
    "biases": {"sequence_bias": {(5,): 2.0, (8, 9): -1.5}, "num_beams": 2},
    "lengths": {"min_new_tokens": 3, "exponential_decay_length_penalty": (3, 1.6), "do_sample": True},
    "forced end": {"forced_eos_token_id": EOS, "num_beams": 2},
    "tokens at the start": {"begin_suppress_tokens": [*range(2, 40)]},
    "classifier-free guidance": {"guidance_scale": 1.5},
    "infinities removed, renormalised": {"remove_invalid_values": True, "renormalize_logits": True, "num_beams": 2},
    "several ends": {"eos_token_id": [EOS, 5, 6, 7], "do_sample": True, "num_return_sequences": 3},
    "custom stopping": {"stopping_criteria": [EndsAt([*range(2, 30)])], "do_sample": True, "num_return_sequences": 3},
    "beams with length penalty": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "no cache": {"use_cache": False, "do_sample": True},
    "prompt in pieces": {"prefill_chunk_size": 3},
    "temperature": {"do_sample": True, "temperature": 0.6},
    "typical": {"do_sample": True, "typical_p": 0.8},
    "top-k, top-p and min-p afterwards": {"do_sample": True, "top_k": 3, "top_p": 0.9, "min_p": 0.05},
    "cut-offs": {"do_sample": True, "epsilon_cutoff": 0.02, "eta_cutoff": 0.02},
    "watermark": {"do_sample": True, "watermarking_config": WatermarkingConfig(bias=2.0)},
    "beam sampling with temperature": {"do_sample": True, "num_beams": 2, "temperature": 1.4},
    "grammar": {"prefix_allowed_tokens_fn": one_or_several},
    "grammar, sampling": {"prefix_allowed_tokens_fn": one_or_several, "do_sample": True},
    "grammar, beams": {"prefix_allowed_tokens_fn": one_or_several, "num_beams": 2},
    "grammar of one token": {"prefix_allowed_tokens_fn": lambda batch, row: [9 + len(row) % 5], "num_beams": 2},
}
"""Arguments of `generate` by their purpose."""


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


@pytest.fixture(scope="module")
def reward_model():
    return RewardModel(tiny_reward_model())


@pytest.fixture(scope="module")
def oracle(reward_model):
    return Oracle(reward_model.model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS)


@pytest.fixture
def recorder(reward_model):
    return Recorder(PartialRewardLogitsProcessor(reward_model, beta=BETA, top_k=TOP_K))


def generate(base, recorder, prompts=RAGGED, **arguments):
    torch.manual_seed(1)
    defaults = {"max_new_tokens": NEW, "top_k": 0, "suppress_tokens": [PAD], "pad_token_id": PAD}
    with torch.no_grad():
        return base.generate(**{**padded(prompts, PAD), **defaults, **arguments}, logits_processor=[recorder])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_call_equals_the_oracle(base, recorder, reward_model, name):
    generate(base, recorder, **OPTIONS[name])
    ends = OPTIONS[name].get("eos_token_id", EOS)
    oracle = Oracle(reward_model.model, beta=BETA, top_k=TOP_K, pad=PAD, eos=ends)
    assert oracle.check(recorder.calls, RAGGED)[0] >= 6


def test_a_grammar_allows_one_token_in_one_row_and_several_in_another(base, recorder):
    generate(base, recorder, **OPTIONS["grammar"])
    numbers = [tuple(len(support(row)) for row in output) for _, _, output in recorder.calls]
    assert {row[0] for row in numbers} == {1}
    assert {row[1] for row in numbers} == {3, 4, 5}
    for _, _, output in recorder.calls:
        assert output[0, 9] == 0.0, "a single token is certain"


def test_rows_that_stop_by_themselves(base, recorder):
    generate(base, recorder, **OPTIONS["custom stopping"])
    assert any((rows[:, -2:] == PAD).all(-1).any() for rows, _, _ in recorder.calls), "no row stopped before the others"


CUTS = {
    "top-p": {"top_k": 30, "top_p": 0.6},
    "min-p": {"top_k": 30, "min_p": 0.3},
    "both": {"top_k": 12, "top_p": 0.9, "min_p": 0.1},
    "top-p of one token": {"top_k": 30, "top_p": 1e-6},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}], ids=str)
def test_ragged_candidates(base, reward_model, cut, mode):
    """Rows of one batch have different numbers of candidates."""
    recorder = Recorder(PartialRewardLogitsProcessor(reward_model, beta=BETA, **CUTS[cut]))
    generate(base, recorder, **mode)
    oracle = Oracle(reward_model.model, beta=BETA, pad=PAD, eos=EOS, **CUTS[cut])
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW
    ragged = any(len({len(support(row)) for row in output}) > 1 for _, _, output in recorder.calls)
    assert ragged == (cut != "top-p of one token")


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}], ids=str)
def test_a_base_model_in_half_precision(recorder, oracle, mode):
    """Scores arrive in float32, full of ties."""
    base = tiny_base_model().to(torch.bfloat16)
    generate(base, recorder, **mode)
    assert {scores.dtype for _, scores, _ in recorder.calls} == {torch.float32}
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW


@pytest.mark.parametrize(
    ("backend", "arguments"),
    [
        ("eager", {}),
        pytest.param("inductor", OPTIONS["static cache"], marks=pytest.mark.slow),
    ],
)
def test_a_compiled_base_model(base, recorder, oracle, reward_model, backend, arguments):
    torch.compiler.reset()
    compiled = tiny_base_model()
    compiled.forward = torch.compile(compiled.forward, backend=backend)
    output = generate(compiled, recorder, **arguments)
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW
    again = PartialRewardLogitsProcessor(reward_model, beta=BETA, top_k=TOP_K)
    assert torch.equal(output, generate(base, again))


def test_a_static_cache_changes_no_token(base, reward_model):
    one, other = (PartialRewardLogitsProcessor(reward_model, beta=BETA, top_k=TOP_K) for _ in range(2))
    assert torch.equal(generate(base, one), generate(base, other, **OPTIONS["static cache"]))


def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """A custom decoding method that draws the second best token in every third step, and uses no cache."""
    while not stopping_criteria(input_ids, None).all():
        logits = model(input_ids, attention_mask=(input_ids != PAD).long()).logits[:, -1].float()
        ranked = logits_processor(input_ids, logits).topk(2).indices
        input_ids = torch.cat([input_ids, ranked[:, [int(input_ids.shape[1] % 3 == 0)]]], dim=1)
    return input_ids


def diverse(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Diverse beams in groups of one: each group calls the processor and avoids tokens of the groups before it."""
    groups = [input_ids.clone() for _ in range(3)]
    while not stopping_criteria(groups[0], None).all():
        taken = torch.zeros(len(input_ids), model.config.vocab_size)
        for group, rows in enumerate(groups):
            logits = model(rows, attention_mask=(rows != PAD).long()).logits[:, -1].float()
            drawn = (logits_processor(rows, logits) - taken).argmax(-1, keepdim=True)
            taken.scatter_(1, drawn, 2.0)
            groups[group] = torch.cat([rows, drawn], dim=1)
    return torch.stack(groups, dim=1).flatten(0, 1)


@pytest.mark.parametrize("method", [loop, diverse])
def test_a_custom_decoding_method(base, recorder, oracle, method):
    output = generate(base, recorder, custom_generate=method)
    assert oracle.check(recorder.calls, RAGGED)[0] >= 2 * NEW
    assert method is loop or len(output.unique(dim=0)) > len(RAGGED)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}], ids=str)
def test_a_long_text(mode):
    """The cache has to grow, after a first text for which it was large enough."""
    base, model = (make(max_position_embeddings=512) for make in (tiny_base_model, tiny_reward_model))
    recorder = Recorder(PartialRewardLogitsProcessor(model, beta=BETA, top_k=TOP_K))
    oracle, text = Oracle(model, beta=BETA, top_k=TOP_K, pad=PAD, eos=EOS), []
    for length in (100, 145):
        recorder.calls.clear()
        prompt = text + [2 + index * index % 50 for index in range(length)]
        text = generate(base, recorder, [prompt], suppress_tokens=[PAD, EOS], **mode)[0].tolist()
        assert oracle.check(recorder.calls, [prompt])[0] >= NEW


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_that_end_in_the_pad_token(base, reward_model, masked):
    """Turns of a chat end in the end-of-text token, which is often the pad token; two need a mask."""
    prompts = [[7, 3, EOS, 11, 4, *[EOS] * (1 + masked)], [5, EOS], [9, 20, 30]]
    inputs = padded(prompts, EOS)
    mask = inputs["attention_mask"] if masked else None
    options = {"beta": BETA, "top_k": TOP_K}
    recorder = Recorder(PartialRewardLogitsProcessor(reward_model, pad_token_id=EOS, attention_mask=mask, **options))
    generate(base, recorder, **inputs, pad_token_id=EOS, suppress_tokens=None)
    assert Oracle(reward_model.model, pad=EOS, eos=EOS, **options).check(recorder.calls, prompts)[0] >= NEW


CONTEXTS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_inside_a_context(base, recorder, oracle, context):
    with CONTEXTS[context]():
        generate(base, recorder)
    # Rewards of a model that computes in bfloat16.
    assert oracle.check(recorder.calls, RAGGED, tolerance=0.3 if context == "autocast" else 1e-4)[0] >= NEW


@pytest.mark.parametrize("context", CONTEXTS)
def test_outside_again_after_a_context(base, recorder, oracle, context):
    with CONTEXTS[context]():
        generate(base, recorder)
    recorder.calls.clear()
    generate(base, recorder)
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW


def test_a_prompt_as_embeddings_and_ids(base, recorder, oracle):
    embedded = base.get_input_embeddings()(padded(RAGGED, PAD)["input_ids"]).detach()
    generate(base, recorder, inputs_embeds=embedded)
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW


def test_output_scores_are_guided_and_logits_are_not(base, recorder, oracle):
    output = generate(
        base, recorder, suppress_tokens=None, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    oracle.check(recorder.calls, RAGGED)
    assert len(output.scores) == len(output.logits) == len(recorder.calls)
    for scores, logits, (_, before, guided) in zip(output.scores, output.logits, recorder.calls, strict=True):
        assert torch.equal(scores, guided)
        assert torch.equal(logits, before)
        assert torch.allclose(scores.exp().sum(-1), torch.ones(len(RAGGED)))
    row = output.sequences[:1]
    with torch.no_grad():
        alone = base(row).logits[0, len(RAGGED[0]) - 1 : -1]
    drawn = len(output.logits) if EOS not in row else row[0].tolist().index(EOS) - len(RAGGED[0])
    assert torch.allclose(torch.stack(output.logits)[:drawn, 0], alone[:drawn], atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_applied_afterwards(base, recorder, temperature):
    output = generate(
        base, recorder, do_sample=True, temperature=temperature, return_dict_in_generate=True, output_scores=True
    )
    for scores, (_, _, guided) in zip(output.scores, recorder.calls, strict=True):
        assert torch.allclose(scores, guided / temperature)


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_beam_scores_are_sums_of_guided_log_probabilities(base, recorder, oracle, beams):
    output = generate(
        base,
        recorder,
        num_beams=4,
        num_return_sequences=beams,
        length_penalty=0.0,
        sequence_bias={(EOS,): 1.5},
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert oracle.check(recorder.calls, RAGGED)[0] >= NEW
    width = max(map(len, RAGGED))
    for index, (row, score) in enumerate(zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True)):
        prompt, generated = RAGGED[index // beams], row[width:]
        generated = generated[: generated.index(EOS) + 1] if EOS in generated else generated
        assert score == pytest.approx(log_probability(base, oracle, prompt, generated), abs=1e-4)


@torch.no_grad()
def log_probability(base, oracle, prompt, generated):
    """Log-probability of a guided continuation, from one uncached forward of the base model without padding."""
    logits = base(torch.tensor([[*prompt, *generated]])).logits[0, len(prompt) - 1 :].float()
    logits[:, PAD] = -torch.inf
    logits[:, EOS] += 1.5
    total = 0.0
    for step, token in enumerate(generated):
        total += oracle.expected((*prompt, *generated[:step]), logits[step])[token]
    return total
