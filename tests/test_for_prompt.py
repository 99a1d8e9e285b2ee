"""Prompts that `generate` does not pass to a processor: embeddings, and encoder-decoder base models."""

import pytest
import torch
from changing_model import skip_without_memory
from oracle import Oracle, Recorder, Rewards
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration, set_seed

from rgtg_logits import (
    CausalScorer,
    LogRatioScorer,
    PartialRewardLogitsProcessor,
    ReferenceScorer,
    RewardModel,
    RewardModelConfig,
    VocabularyScorer,
    WeightedScorer,
)
from rgtg_logits.errors import PaddingError
from rgtg_logits.testing import (
    EOS,
    PAD,
    VOCAB_SIZE,
    tiny_base_model,
    tiny_reward_model,
    tiny_tokenizer,
    tiny_vocabulary_model,
)

PROMPTS = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 3},
    "return_sequences": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
}


def padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts], dtype=torch.long)
    return ids, (ids != PAD).long()


class WithPrompts(Recorder):
    """A recorder of rows with their prompts, as the reward model should read them."""

    def __init__(self, processor, prompts, start):
        super().__init__(processor)
        self.ids, self.start = padded(prompts)[0], start

    def __call__(self, input_ids, scores):
        output = super().__call__(input_ids, scores)
        prompts = self.ids.repeat_interleave(len(input_ids) // len(self.ids), dim=0)
        self.calls[-1] = (torch.cat([prompts, input_ids[:, self.start :]], dim=1), *self.calls[-1][1:])
        return output


def check(base, start, arguments, **prompt):
    model = tiny_reward_model()
    ids, mask = padded(PROMPTS)
    processor = PartialRewardLogitsProcessor(model, beta=0.7, top_k=5).for_prompt(ids, mask)
    oracle = Oracle(model, beta=0.7, top_k=5, pad=PAD, eos=EOS)
    for _ in range(2):  # One object, called again.
        recorder = WithPrompts(processor, PROMPTS, start)
        with torch.no_grad():
            base.generate(
                attention_mask=mask, pad_token_id=PAD, suppress_tokens=[PAD], max_new_tokens=7,
                logits_processor=[recorder], **prompt, **arguments,
            )  # fmt: skip
        assert recorder.calls[0][0].shape[1] == ids.shape[1]
        assert oracle.check(recorder.calls, PROMPTS)[0] >= 12


@pytest.mark.parametrize("mode", MODES)
def test_embeddings(mode):
    base = tiny_base_model()
    check(base, 0, MODES[mode], inputs_embeds=base.get_input_embeddings()(padded(PROMPTS)[0]).detach())


def t5():
    set_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB_SIZE, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, pad_token_id=PAD,
            eos_token_id=EOS, decoder_start_token_id=PAD, initializer_factor=3.0,
        )
    ).eval()  # fmt: skip


def bart():
    set_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCAB_SIZE, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=PAD, bos_token_id=2,
            eos_token_id=EOS, decoder_start_token_id=EOS, forced_eos_token_id=None, init_std=0.5,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", [t5, bart])
def test_encoder_decoders(model, mode):
    check(model(), 1, MODES[mode], input_ids=padded(PROMPTS)[0])


def test_text():
    tokenizer, model = tiny_tokenizer(), tiny_reward_model(vocab_size=300)
    processor = PartialRewardLogitsProcessor(RewardModel(model, tokenizer), tokenizer=tokenizer, top_k=5)
    texts = ["the film was good", "a plot"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    scores, input_ids = torch.randn(2, 300), torch.empty(2, 0, dtype=torch.long)
    direct = processor.for_prompt(inputs["input_ids"], inputs["attention_mask"])(input_ids, scores)
    assert torch.allclose(processor.for_prompt(texts)(input_ids, scores), direct, atol=1e-4)
    assert torch.allclose(processor(inputs["input_ids"], scores), direct, atol=1e-4)


def test_the_original_is_as_it_was():
    processor = PartialRewardLogitsProcessor(tiny_reward_model(), top_k=5)
    rows, scores = torch.tensor([[5, 6, 7]]), torch.randn(1, VOCAB_SIZE)
    before = processor(rows, scores)
    processor.for_prompt(torch.tensor([[9, 9, 9]]))(rows, scores)
    assert torch.equal(processor(rows, scores), before)


# Answers that stand alone


STRATEGIES = [
    ("llama", "tree_attention"), ("gemma2", "tree_attention"), ("llama", "masked_tree_attention"), ("llama", "expand"),
    ("jamba", "expand_model_cache"), ("llama", "recompute"),
]  # fmt: skip


@pytest.mark.parametrize("prompts", [[[], [], []], [[5, 8], [], [2, 13, 40, 41]]])
@pytest.mark.parametrize(("model_type", "strategy"), STRATEGIES)
def test_an_answer_to_no_prompt_is_judged_alone(model_type, strategy, prompts):
    """As that to a picture or to speech, whose prompt the reward model cannot read; in two sequences for each."""
    if model_type == "jamba":
        skip_without_memory(model_type)
    model = tiny_reward_model(model_type)
    rewards = Rewards(model)
    processor = PartialRewardLogitsProcessor(
        CausalScorer(RewardModel(model), strategy=strategy), beta=0.7, top_k=5, pad_token_id=PAD
    ).for_prompt(*padded(prompts))
    rows = start_rows(EOS, prompts=6)
    for _ in range(4):
        scores = torch.randn(6, VOCAB_SIZE)
        output = processor(rows, scores)
        for index, row in enumerate(rows.tolist()):
            text = (*prompts[index // 2], *row[1:])
            best = scores[index].topk(5)
            given = torch.tensor([rewards[(*text, token)] for token in best.indices.tolist()])
            expected = (best.values.log_softmax(-1) + 0.7 * given).log_softmax(-1)
            torch.testing.assert_close(output[index, best.indices], expected, atol=1e-4, rtol=1e-4)
        rows = torch.cat([rows, output.softmax(-1).multinomial(1).clamp(min=2)], dim=1)


@pytest.mark.parametrize("kind", ["same tokens", "other tokens", "prompt format", "sum"])
def test_a_text_of_nothing_as_the_prompt(kind):
    tokenizer = tiny_tokenizer()
    own = tokenizer if kind in ("same tokens", "sum") else tiny_tokenizer(["the music was good"], vocab_size=340)
    reward_model = RewardModel(tiny_reward_model(vocab_size=360, max_position_embeddings=512), own)
    options = {"prompt_format": lambda prompt, answer: f"{prompt}|{answer}"} if kind == "prompt format" else {}
    source = WeightedScorer([reward_model], [1.0], tokenizer=tokenizer) if kind == "sum" else reward_model
    processor = PartialRewardLogitsProcessor(source, tokenizer=tokenizer, beta=1.0, top_k=5, **options)
    processor = processor.for_prompt(["", "a plot"])
    reader = None if own is tokenizer else tokenizer
    prompts = [[], tokenizer("a plot")["input_ids"]]
    reference = ReferenceScorer(reward_model, reader, prompts=prompts, **options)
    rows = torch.empty(2, 0, dtype=torch.long)
    for _ in range(4):
        scores = torch.randn(2, len(tokenizer))
        scores[:, tokenizer.all_special_ids] = -torch.inf
        output = processor(rows, scores)
        for index, row in enumerate(rows.tolist()):
            best = scores[index].topk(5)
            texts = [reference.read([*prompts[index], *row], token) for token in best.indices.tolist()]
            given = torch.stack([reward_model.score_tokens(torch.tensor([text]))[0, -1] for text in texts])
            expected = (best.values.log_softmax(-1) + given).log_softmax(-1)
            torch.testing.assert_close(output[index, best.indices], expected, atol=1e-4, rtol=1e-4)
        rows = torch.cat([rows, output.argmax(-1, keepdim=True)], dim=1)


@pytest.mark.parametrize(("kind", "scorer"), [("vocabulary", VocabularyScorer), ("log_ratio", LogRatioScorer)])
def test_a_model_of_next_tokens_needs_a_token_to_begin_with(kind, scorer):
    reward_model = RewardModel(tiny_vocabulary_model(), config=RewardModelConfig(kind=kind))
    processor = PartialRewardLogitsProcessor(scorer(reward_model)).for_prompt(torch.empty(2, 0, dtype=torch.long))
    with pytest.raises(PaddingError, match=r"this scorer cannot judge the first token .* such as bos, or start=0"):
        processor(start_rows(EOS, prompts=2), torch.randn(2, VOCAB_SIZE))


# One object, used again


def start_rows(*tokens, prompts=3):
    return torch.tensor([tokens] * prompts)


def guided_for(model, **options):
    return PartialRewardLogitsProcessor(model, beta=0.7, top_k=5).for_prompt(*padded(PROMPTS), **options)


@pytest.mark.parametrize("started", [2, 5])
@pytest.mark.parametrize("steps", [1, 4])
def test_an_answer_that_starts_otherwise_is_refused(started, steps):
    """As with another prompt of the decoder (another language, say): the rows answer other prompts."""
    processor, rows = guided_for(tiny_reward_model()), start_rows(9, 8)
    for _ in range(steps):
        scores = torch.randn(3, VOCAB_SIZE)
        rows = torch.cat([rows, processor(rows, scores).argmax(-1, keepdim=True)], dim=1)
    other = torch.cat([start_rows(7, 8), rows[:, 2:]], dim=1)[:, :started]
    other = torch.nn.functional.pad(other, (0, started - other.shape[1]), value=11)
    with pytest.raises(PaddingError, match="begin or continue an answer to the 3 prompts .* Call for_prompt again"):
        processor(other, torch.randn(3, VOCAB_SIZE))
    # It is as it was.
    processor(start_rows(9, 8), torch.randn(3, VOCAB_SIZE))
    processor(rows, torch.randn(3, VOCAB_SIZE))


def test_rows_of_ordinary_prompts_are_refused():
    base, processor = tiny_base_model(), guided_for(tiny_reward_model(), start=0)
    embeddings = base.get_input_embeddings()(padded(PROMPTS)[0]).detach()
    arguments = {"attention_mask": padded(PROMPTS)[1], "max_new_tokens": 3, "logits_processor": [processor]}
    base.generate(inputs_embeds=embeddings, pad_token_id=PAD, **arguments)
    with pytest.raises(PaddingError, match="rows of 7 tokens that continue none of those seen before"):
        base.generate(padded(PROMPTS)[0], pad_token_id=PAD, **arguments)


def test_answers_may_be_continued_from_where_they_were():
    """Rolled back, in other places, by fewer rows or more, and from a saved answer."""
    processor, rows = guided_for(tiny_reward_model()), start_rows(9)
    history = [rows]
    for _ in range(5):
        drawn = processor(rows, torch.randn(3, VOCAB_SIZE)).argmax(-1, keepdim=True)
        rows = torch.cat([rows, drawn], dim=1)
        history.append(rows)
    processor(torch.cat([history[2][[1, 1, 0]], start_rows(5)], dim=1), torch.randn(3, VOCAB_SIZE))
    processor(history[3].repeat_interleave(2, dim=0), torch.randn(6, VOCAB_SIZE))
    assert processor(history[5], torch.randn(3, VOCAB_SIZE)).shape == (3, VOCAB_SIZE)


@pytest.mark.parametrize("arguments", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": True}])
def test_assisted_decoding_continues_what_was_seen(arguments):
    base, model = t5(), tiny_reward_model()
    processor = PartialRewardLogitsProcessor(model, beta=0.7, top_k=5).for_prompt(torch.tensor([PROMPTS[0]]))
    arguments = {"assistant_model": t5()} if "assistant_model" in arguments else arguments
    inputs = {"input_ids": torch.tensor([PROMPTS[0]]), "max_new_tokens": 12, "suppress_tokens": [PAD, EOS]}
    with torch.no_grad():
        alone = base.generate(**inputs, logits_processor=[processor])
        for _ in range(2):
            assert torch.equal(base.generate(**inputs, logits_processor=[processor], **arguments), alone)


def test_old_rows_are_forgotten(monkeypatch):
    monkeypatch.setattr("rgtg_logits.hidden_prompt._REMEMBERED_ROWS", 6)
    processor, rows = guided_for(tiny_reward_model()), start_rows(9)
    for _ in range(4):
        rows = torch.cat([rows, processor(rows, torch.randn(3, VOCAB_SIZE)).argmax(-1, keepdim=True)], dim=1)
    assert len(processor._prompt._seen) == 6
