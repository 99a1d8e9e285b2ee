"""Every mistake a user can make gets a message that says what was expected, what came and what to do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    LogitsProcessorList,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rgtg_logits import CausalScorer, LogRatioScorer, PartialRewardLogitsProcessor, RewardModel, RewardModelConfig
from rgtg_logits.errors import (
    CheckpointError,
    ContextLengthError,
    InvalidArgumentError,
    NonFiniteRewardError,
    PaddingError,
    RewardModelError,
    VocabularyError,
)
from rgtg_logits.testing import PAD, VOCAB_SIZE, tiny_base_model, tiny_config, tiny_reward_model, tiny_tokenizer


def generate(processor, prompts=((5, 6, 7),), base=None, **arguments):
    ids = torch.tensor(prompts)
    base = base or tiny_base_model()
    with torch.no_grad():
        return base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, logits_processor=[processor], **arguments
        )


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_beta(beta):
    with pytest.raises(
        InvalidArgumentError, match=f"Expected beta to be a finite guidance .* of 0 or more, but got {beta}"
    ):
        PartialRewardLogitsProcessor(tiny_reward_model(), beta=beta)


@pytest.mark.parametrize("arguments", [{"top_k": 0}, {"top_p": 1.2}, {"min_p": -1.0}])
def test_candidate_rules(arguments):
    with pytest.raises(InvalidArgumentError, match=f"Expected {next(iter(arguments))} to be"):
        PartialRewardLogitsProcessor(tiny_reward_model(), **arguments)


def test_an_encoder():
    config = BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_labels=1,
    )  # fmt: skip
    with pytest.raises(RewardModelError, match=r"Expected a causal reward model.*change by .* it is an encoder"):
        PartialRewardLogitsProcessor(BertForSequenceClassification(config))


def test_an_encoder_with_a_head_of_its_own_kind():
    config = RobertaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_labels=1,
    )  # fmt: skip
    with pytest.raises(RewardModelError, match=r"Expected a decoder-only .* RobertaForSeq.* is built otherwise. Use a"):
        PartialRewardLogitsProcessor(RobertaForSequenceClassification(config))


def test_an_encoder_decoder():
    config = tiny_config("llama", num_labels=1)
    model = tiny_reward_model()
    model.config = config
    config.is_encoder_decoder = True
    with pytest.raises(RewardModelError, match="Expected a decoder-only reward model, but .* is an encoder-decoder"):
        PartialRewardLogitsProcessor(model)


def test_more_labels_than_one():
    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=2))
    with pytest.raises(
        RewardModelError, match=r"Expected a reward model with num_labels=1 .* has num_labels=2.*rgtg train"
    ):
        PartialRewardLogitsProcessor(model)


def test_a_language_model():
    model = tiny_base_model()
    with pytest.raises(
        RewardModelError,
        match=r"followed by one linear layer .* but LlamaForCausalLM is built otherwise. Use .*kind='vocabulary'",
    ):
        PartialRewardLogitsProcessor(model)


def test_layers_between_backbone_and_head():
    """A head that is more than one linear layer would be read in part, silently."""
    model = tiny_reward_model()
    model.dense = torch.nn.Linear(32, 1)
    with pytest.raises(RewardModelError, match=r"one output, but LlamaForSequenceClassification is built otherwise"):
        RewardModel(model)


def test_an_output_that_is_not_the_heads():
    class Scaled(LlamaForSequenceClassification):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    model = Scaled(tiny_config("llama", num_labels=1))
    torch.nn.init.normal_(model.score.weight)
    with pytest.raises(RewardModelError, match=r"whose output is a linear head .* returns .* where that head gives"):
        PartialRewardLogitsProcessor(model)


def test_something_else():
    with pytest.raises(RewardModelError, match=r"Expected a transformers …ForSequenceClassification .* got Linear"):
        RewardModel(torch.nn.Linear(2, 1))


def test_vocabularies_that_differ_and_no_tokenizer():
    base = tiny_base_model(vocab_size=200)
    with pytest.raises(VocabularyError, match=rf"Expected token ids below {VOCAB_SIZE}, .* Pass tokenizer="):
        generate(PartialRewardLogitsProcessor(tiny_reward_model(), top_k=100), base=base)


def test_a_prompt_outside_the_reward_models_vocabulary():
    base = tiny_base_model(vocab_size=200)
    with pytest.raises(
        VocabularyError, match=rf"Expected token ids below {VOCAB_SIZE}, .* but got 150.* Pass tokenizer="
    ):
        generate(
            PartialRewardLogitsProcessor(tiny_reward_model()),
            ((5, 150, 7),),
            base,
            suppress_tokens=list(range(60, 200)),
        )


def test_padding_rows_of_the_base_vocabulary_are_no_error():
    """Vocabularies may differ by unused rows; sizes alone prove nothing."""
    base = tiny_base_model(vocab_size=64)
    processor = PartialRewardLogitsProcessor(tiny_reward_model())
    assert generate(processor, base=base, suppress_tokens=[61, 62, 63]).shape == (1, 6)


@pytest.mark.parametrize("kind", ["vocabulary", "log_ratio"])
def test_tokenizers_that_differ_where_next_tokens_are_scored(kind):
    base = tiny_tokenizer(["zebra zebra yak yak quiz quiz"] * 5)
    reward_model = RewardModel(tiny_base_model(vocab_size=300), tiny_tokenizer(), config=RewardModelConfig(kind=kind))
    with pytest.raises(
        VocabularyError, match=rf"of kind '{kind}' to share a vocabulary, .* but \d+ tokens .* another id"
    ):
        PartialRewardLogitsProcessor(reward_model, tokenizer=base)


def test_a_prompt_format_without_the_base_tokenizer():
    reward_model = RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer())
    with pytest.raises(InvalidArgumentError, match="Expected the base model's tokenizer, .* Pass tokenizer="):
        PartialRewardLogitsProcessor(reward_model, prompt_format=lambda prompt, answer: prompt + answer)


def test_options_for_a_scorer_that_has_its_own():
    with pytest.raises(InvalidArgumentError, match="to be left out for a Scorer, .* Pass them to the scorer"):
        PartialRewardLogitsProcessor(CausalScorer(RewardModel(tiny_reward_model())), on_overflow="truncate_left")


def test_a_log_ratio_without_the_reference_that_it_names():
    config = RewardModelConfig(kind="log_ratio", reference="org/sft")
    with pytest.raises(InvalidArgumentError, match="Expected the reference model 'org/sft', .* pass it as reference="):
        LogRatioScorer(RewardModel(tiny_base_model(), config=config))


def test_a_prompt_for_other_rows():
    processor = PartialRewardLogitsProcessor(tiny_reward_model())
    with pytest.raises(PaddingError, match="answer the 2 prompts given to for_prompt .* but got 1 rows of 3 tokens"):
        generate(processor.for_prompt(torch.tensor([[5, 6], [7, 8]]), start=0))
    with pytest.raises(InvalidArgumentError, match=r"attention_mask to have the shape \(1, 2\) .* but got \(1, 3\)"):
        processor.for_prompt(torch.tensor([[5, 6]]), torch.ones(1, 3))
    with pytest.raises(InvalidArgumentError, match="made without a tokenizer, but got text. Pass tokenizer="):
        processor.for_prompt("A film")


def test_pad_token_needed_and_unknown():
    processor = PartialRewardLogitsProcessor(tiny_reward_model("gpt2", pad_token_id=None))
    with pytest.raises(
        PaddingError, match=r"Expected to know which token pads, .* the 2 rows .* neither .* pad_token_id="
    ):
        generate(processor, ((5, 6, 7), (8, 9, 10)), pad_token_id=PAD)
    assert generate(processor, num_beams=2, pad_token_id=PAD).shape[0] == 1


def test_a_prompt_of_nothing_but_the_pad_token():
    processor = PartialRewardLogitsProcessor(tiny_reward_model("gpt2", pad_token_id=1), pad_token_id=1)
    with pytest.raises(PaddingError, match=r"row 0 holds only the padding token.* attention_mask="):
        generate(processor, ((1,),))


def test_a_prompt_of_embeddings_alone():
    processor, base = PartialRewardLogitsProcessor(tiny_reward_model()), tiny_base_model()
    embeddings = base.get_input_embeddings()(torch.tensor([[5, 6]])).detach()
    with pytest.raises(
        PaddingError, match=r"Expected the prompt's token ids, .* inputs_embeds alone. Pass processor.for_prompt"
    ):
        base.generate(inputs_embeds=embeddings, max_new_tokens=2, logits_processor=[processor])


def test_a_prompt_longer_than_the_context_before_any_token():
    processor = PartialRewardLogitsProcessor(tiny_reward_model(max_position_embeddings=32))
    with pytest.raises(ContextLengthError, match=r"at most 32 tokens, .* have 41. Shorten the prompt"):
        generate(processor, (tuple(range(2, 42)),))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite(value):
    model = tiny_reward_model()
    processor = PartialRewardLogitsProcessor(model, top_k=VOCAB_SIZE)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = value
    with pytest.raises(NonFiniteRewardError, match=r"the reward of row 0 with token 33 is nan"):
        generate(processor)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = 0.1
    # The next call is right, and its tokens are those of a fresh object.
    assert torch.equal(generate(processor), generate(PartialRewardLogitsProcessor(model, top_k=VOCAB_SIZE)))


@pytest.mark.parametrize("arguments", [{}, {"strategy": "expand"}])
def test_two_objects_do_not_share_state(arguments):
    reward_model = RewardModel(tiny_reward_model())
    first, second = CausalScorer(reward_model, **arguments), CausalScorer(reward_model, **arguments)
    alone = generate(PartialRewardLogitsProcessor(first))
    generate(PartialRewardLogitsProcessor(second), ((9, 8, 7, 6),))
    assert torch.equal(alone, generate(PartialRewardLogitsProcessor(first)))


def test_paged_generation_is_declared_unsupported_and_transformers_says_so(caplog):
    batching = pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    processor = PartialRewardLogitsProcessor(tiny_reward_model())
    batching.logger.addHandler(caplog.handler)
    try:
        processors = batching.ContinuousBatchingLogitsProcessorList(
            LogitsProcessorList([processor]), drop_unsupported_processors=True
        )
    finally:
        batching.logger.removeHandler(caplog.handler)
    assert "PartialRewardLogitsProcessor isn't supported by CB" in caplog.text
    assert not processors.logits_processor


# Checkpoints


@pytest.fixture
def folder(tmp_path):
    RewardModel(tiny_reward_model(vocab_size=300), tiny_tokenizer()).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"Expected a Hub id such as 'org/name' or an existing folder, but .* neither"
    ):
        PartialRewardLogitsProcessor(tmp_path / "nothing")


def test_a_folder_without_safetensors(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it lacks model.safetensors and has pickled weights .* never loaded"):
        RewardModel.from_pretrained(folder)


def test_code_of_its_own_is_never_run(folder):
    (folder / "modeling_custom.py").write_text("raise SystemExit('repository code was run')")
    auto_map = {"AutoConfig": "modeling_custom.Config", "AutoModelForSequenceClassification": "modeling_custom.Model"}
    edit_config(folder, model_type="custom", auto_map=auto_map)
    with pytest.raises(CheckpointError, match="code from a repository is never run"):
        RewardModel.from_pretrained(folder)


def test_weights_without_a_head(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it lacks score.weight. Such weights would be random: train"):
        RewardModel.from_pretrained(folder)


def test_a_language_model_checkpoint(tmp_path):
    tiny_base_model().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"it is LlamaForCausalLM, which has no reward head. Train .*rgtg train.* pass kind='vocabulary'",
    ):
        RewardModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_kind(folder):
    edit_config(folder, rgtg={"version": 9, "kind": "telepathic"})
    with pytest.raises(
        CheckpointError, match=r"to be one of causal, vocabulary, log_ratio, but it is 'telepathic'. .* upgrade"
    ):
        RewardModel.from_pretrained(folder)
