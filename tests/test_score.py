"""`RewardModel.score` on texts and conversations: the model's own forward on what it was trained on."""

import pytest
import torch
from test_chat import CHATML, GEMMA, LLAMA3

from rgtg_logits import RewardModel, RewardModelConfig
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]
ANSWER = [{"role": "assistant", "content": "Put it into hot water."}]
CHAT = [
    *QUESTION,
    *ANSWER,
    {"role": "user", "content": "How long?"},
    {"role": "assistant", "content": "Eight minutes."},
]


def reward_model(template=CHATML, **options):
    tokenizer = tiny_tokenizer(chat_template=template, **options)
    return RewardModel(tiny_reward_model(vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer)


def own(model, messages):
    """What the maker of a chat model computes."""
    inputs = model.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return float(model.model(input_ids=inputs["input_ids"]).logits[0, 0])


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA])
@pytest.mark.parametrize("options", [{}, {"adds_bos": True}, {"adds_eos": True}, {"closed_by": "<|im_end|>"}], ids=str)
def test_a_conversation_scores_as_by_the_models_own_forward(template, options):
    model = reward_model(template, **options)
    expected = torch.tensor([own(model, CHAT), own(model, [*QUESTION, *ANSWER])])
    torch.testing.assert_close(model.score([CHAT, [*QUESTION, *ANSWER]]), expected, atol=1e-6, rtol=1e-6)
    tokens = model.score_tokens([CHAT, [*QUESTION, *ANSWER]])
    lengths = [
        len(model.tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in (CHAT, CHAT[:2])
    ]
    last = torch.stack([row[length - 1] for row, length in zip(tokens, lengths, strict=True)])
    torch.testing.assert_close(last, expected, atol=1e-6, rtol=1e-6)
    assert (tokens[1, lengths[1] :] == 0).all()


def test_all_forms_of_one_conversation_score_alike():
    model = reward_model()
    expected = torch.tensor([own(model, [*QUESTION, *ANSWER])])
    answer = ANSWER[0]["content"]
    forms = [
        ([*QUESTION, *ANSWER],), ([[*QUESTION, *ANSWER]],), ((*QUESTION, *ANSWER),), (QUESTION, ANSWER),
        ([QUESTION], [ANSWER]), ([QUESTION], [answer]), (QUESTION, answer), ((QUESTION,), (answer,)),
    ]  # fmt: skip
    for form in forms:
        torch.testing.assert_close(model.score(*form), expected, atol=1e-6, rtol=1e-6)
    assert model.score([], []).shape == model.score([]).shape == (0,)
    assert model.score_tokens([]).shape == (0, 0)


def test_one_text_alone_is_one_text():
    """Not as many texts as it has letters."""
    model = reward_model()
    expected = model.score(["How do I", "A film"], [" boil it?", ""])
    for form in (("How do I", " boil it?"), ("How do I boil it?",), (["How do I boil it?"],)):
        torch.testing.assert_close(model.score(*form), expected[:1])
    torch.testing.assert_close(model.score(["How do I boil it?", "A film"]), expected)
    torch.testing.assert_close(model.score_tokens("How do I boil it?")[:, -1], expected[:1])


def test_models_of_next_tokens_read_conversations_too():
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    language_model = tiny_vocabulary_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    model = RewardModel(language_model, tokenizer, config=RewardModelConfig(kind="log_ratio"))
    ids = tokenizer.apply_chat_template(CHAT, return_dict=True, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model.score([CHAT]), model.score_tokens(ids)[:, -1])


WRONG = {
    "a number": ([3], None, "Expected prompts to be texts, or conversations .* but got int 3"),
    "no list": (3, None, "Expected prompts to be texts, or conversations .* but got int 3"),
    "a message without a role": ([[{"content": "hi"}]], None, "Expected prompts to be texts"),
    "an empty conversation": ([[]], None, "Expected prompts to be texts"),
    "a response of another kind": (["hi"], [ANSWER], "Expected a text as the response to a text, but got messages"),
    "fewer responses": (
        ["hi", "ho"],
        ["a"],
        "Expected one response for each prompt, but got 2 prompts and 1 responses",
    ),
    "a response that is none": ([QUESTION], [None], "Expected responses to be texts, or conversations"),
    "roles out of turn": (
        [[*QUESTION, *QUESTION]],
        None,
        "the chat template takes, but it refuses those of user, user",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_scored(name):
    prompts, responses, message = WRONG[name]
    with pytest.raises(InvalidArgumentError, match=message):
        reward_model(GEMMA).score(prompts, responses)


def test_what_the_model_cannot_read():
    with pytest.raises(InvalidArgumentError, match="Expected a tokenizer with a chat template"):
        reward_model(None).score([CHAT])
    with pytest.raises(ContextLengthError, match="Expected texts of at most 256 tokens.* but text 1 has"):
        reward_model().score(["a", "a film " * 500])
    plain = reward_model()
    plain.tokenizer.eos_token = None
    with pytest.raises(InvalidArgumentError, match="Expected tokens in every text, but text 0 has none"):
        plain.score([""])
