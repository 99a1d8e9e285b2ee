"""`rgtg check --prompt-format chat`: reward models that read chats, with the base model's tokens or others."""

import pytest
from test_chat import TEMPLATES
from test_check import PROMPTS, QUICK, SIZE, by_command_line, named, reward_model, statuses

from rgtg_logits import ReferenceScorer, RetokenizingScorer, RewardModel, RewardModelConfig
from rgtg_logits.check import CheckSettings, ModelPair, check_models
from rgtg_logits.check.cost import NEW_TOKENS, _prompt
from rgtg_logits.check.run import build_scorers
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import tiny_base_model, tiny_tokenizer, tiny_vocabulary_model

ZEBRA = ["zebra zebra yak yak quiz quiz"] * 5
LONG = {"max_position_embeddings": 512}


def chat_pair(own="chatml", base="zephyr", *, tokens=None, reader=None):
    """A pair whose chat templates are those of these families; None for none."""
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES.get(base))
    mine = tiny_tokenizer(tokens, chat_template=TEMPLATES.get(own))
    reader = reader or reward_model(tokenizer=mine, max_position_embeddings=4096)
    return ModelPair(tiny_base_model(vocab_size=SIZE, **LONG), tokenizer, reader, "chat")


@pytest.mark.parametrize("tokens", [None, ZEBRA], ids=["same tokens", "others"])
@pytest.mark.parametrize("base", ["zephyr", None], ids=["chats", "texts"])
def test_a_reward_model_that_reads_chats(base, tokens):
    models = chat_pair(base=base, tokens=tokens)
    findings = check_models(models, QUICK)
    assert statuses(findings, "fail") == set() and statuses(findings, "note") == {"vocabulary"}
    vocabulary = named(findings, "vocabulary")
    assert "It reads chats" in vocabulary.value and "prompt_format='chat'" in vocabulary.advice
    assert ("the same" in vocabulary.value) == (tokens is None)
    rewards = named(findings, "cached = uncached").figures
    assert 0 < rewards["worst"] < rewards["tolerance"] < 1e-3 * rewards["spread"]
    assert (
        "RetokenizingScorer" in named(findings, "strategy").value
        and "× plain" in named(findings, "further token").value
    )


def test_prompts_are_put_as_both_want_them():
    models = chat_pair()
    prompt = models.encode("so good")
    assert models.tokenizer.decode(prompt) == models.tokenizer.apply_chat_template(
        [{"role": "user", "content": "so good"}], tokenize=False, add_generation_prompt=True
    )
    candidate = models.tokenizer("e")["input_ids"][0]
    reference = build_scorers(models, prompts=[prompt]).reference
    read = models.reward_model.tokenizer.decode(reference.read([*prompt, candidate], candidate))
    chat = [{"role": "user", "content": "so good"}, {"role": "assistant", "content": "ee"}]
    whole = models.reward_model.tokenizer.apply_chat_template(chat, tokenize=False)
    assert read == whole.partition("ee")[0] + "ee"
    finding = models.check_context([prompt], 10)
    assert finding.figures["reward_model_prompt"] == len(
        models.reward_model.tokenizer(whole.partition("ee")[0], add_special_tokens=False)["input_ids"]
    )


def test_texts_that_are_put_otherwise_are_found():
    models = chat_pair()
    findings = check_models(models, QUICK, scorer=RetokenizingScorer(models.reward_model, models.tokenizer))
    wrong = named(findings, "cached = uncached")
    assert wrong.status == "fail" and wrong.figures["worst"] > 0.1 * wrong.figures["spread"]


def test_a_row_that_begins_with_no_prompt():
    models = chat_pair()
    scorer = ReferenceScorer(models.reward_model, models.tokenizer, prompt_format="chat", prompts=[[3, 4], [3]])
    assert scorer.read([3, 4, 5], 6) != scorer.read([3, 5, 5], 6)
    with pytest.raises(InvalidArgumentError, match="Expected a row that begins with one of the 2 prompts"):
        scorer.read([4, 5], 6)


def test_a_short_context_leaves_time_for_a_shorter_chat():
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES["chatml"])
    models = chat_pair(reader=reward_model(tokenizer=tokenizer, max_position_embeddings=72))
    timed = _prompt(models, [" ".join(PROMPTS * 9)])
    # A chat of its own, with room for what is timed, and none for one more word.
    assert models.tokenizer.decode(timed).startswith("<|user|>") and models.room([timed]) >= NEW_TOKENS
    message = models.tokenizer(" ".join(PROMPTS * 9))["input_ids"]
    longer = next(
        chat for end in range(1, 99) if len(chat := models.encode(models.tokenizer.decode(message[:end]))) > len(timed)
    )
    assert models.room([longer]) < NEW_TOKENS


def test_what_cannot_read_chats():
    with pytest.raises(InvalidArgumentError, match="Expected a reward model with a chat template for prompt"):
        chat_pair(own=None)
    with pytest.raises(InvalidArgumentError, match="Expected a reward model with its tokenizer, because it is to read"):
        chat_pair(reader=RewardModel(reward_model().model))
    vocabulary = RewardModel(
        tiny_vocabulary_model(vocab_size=SIZE), tiny_tokenizer(), config=RewardModelConfig(kind="vocabulary")
    )
    with pytest.raises(InvalidArgumentError, match="Expected a reward model of kind causal, .* of kind vocabulary"):
        chat_pair(reader=vocabulary)
    with pytest.raises(InvalidArgumentError, match="Expected prompt_format to be one of chat, but got 'alpaca'"):
        CheckSettings(prompt_format="alpaca")


def test_the_format_from_the_command_line(tmp_path):
    found = by_command_line(tmp_path, chat_pair(), "--prompt-format", "chat")
    assert found["settings"]["prompt_format"] == "chat"
    assert "It reads chats" in " ".join(finding["value"] for finding in found["findings"])
