"""A base model may end its text with other tokens than `tokenizer.eos_token`: they are judged as finished texts."""

import numpy
import pytest
import torch
from test_chat import CHATML, TEMPLATES, with_template

from rgtg_logits import (
    PartialRewardLogitsProcessor,
    ReferenceScorer,
    RetokenizingScorer,
    RewardModel,
    WeightedScorer,
)
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers import make_scorer
from rgtg_logits.scorers.text.ends import end_of_turn_tokens
from rgtg_logits.scorers.text.retokenizer import Detokenizer
from rgtg_logits.testing import EOS, TOKENIZER_KINDS, tiny_reward_model, tiny_tokenizer

TURN_END = 4
ANSWER = "the film was good"
CHAT = [{"role": "user", "content": "was the film good?"}]


def reward_model(kind="llama2"):
    tokenizer = tiny_tokenizer(kind=kind, vocab_size=340, chat_template=CHATML)
    return RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)


def closing(body):
    return "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}" + body + "{% endfor %}"


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def reward_of(model, tokens):
    states = model.model.base_model(torch.tensor([tokens]), use_cache=False).last_hidden_state
    return float(model.model.score(states[:, -1]))


def rewards_of_candidates(scorer, prompt, answer, candidates):
    """The rewards behind an answer that was generated token by token, so that the prompt is known."""
    for length in range(len(answer) + 1):
        rows = torch.tensor([[*prompt, *answer[:length]]])
        # Any token may follow, whichever are scored.
        scorer.observe(rows, torch.ones_like(rows))
        rewards = scorer.score(rows, torch.ones_like(rows), torch.tensor([candidates]))
    return rewards[0]


def rendered(prompt_format, model, question, answer, finished):
    """The tokens that the reward model has to read, put together by hand."""
    if prompt_format == "chat":
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = model.tokenizer.apply_chat_template(messages, tokenize=False)
        return ids(model.tokenizer, text if finished else text[: text.rindex(answer) + len(answer)])
    text = prompt_format(question, answer) if prompt_format else question + answer
    return [*ids(model.tokenizer, text), *([model.tokenizer.eos_token_id] if finished else [])]


@pytest.mark.parametrize("prompt_format", [None, "chat", lambda prompt, answer: f"Q: {prompt}\nA: {answer}"])
@pytest.mark.parametrize("rm_kind", ["llama2", "llama3"])
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_end_tokens_that_are_named(kind, rm_kind, prompt_format):
    base, model = tiny_tokenizer(kind=kind, vocab_size=420), reward_model(rm_kind)
    prompt, answer = ids(base, "was the film good?"), ids(base, " " + ANSWER)
    word = ids(base, " bad")[0]
    detokenizer = Detokenizer(base)
    question = detokenizer.decode(prompt)
    text = detokenizer.answer(question, detokenizer.decode([*prompt, *answer]))
    expected = {
        finished: reward_of(model, rendered(prompt_format, model, question, text, finished))
        for finished in (True, False)
    }
    candidates = [EOS, TURN_END, word, 3]
    for ends in ([TURN_END, word], (numpy.int64(TURN_END), word)):
        fast = RetokenizingScorer(model, base, prompt_format=prompt_format, eos_token_id=ends)
        slow = ReferenceScorer(model, base, prompt_format=prompt_format, prompts=[prompt], eos_token_id=ends)
        for scorer in (fast, slow):
            rewards = rewards_of_candidates(scorer, prompt, answer, candidates)
            torch.testing.assert_close(rewards, torch.tensor([expected[True]] * 3 + [expected[False]]))
    unnamed = RetokenizingScorer(model, base, prompt_format=prompt_format)
    rewards = rewards_of_candidates(unnamed, prompt, answer, candidates)
    torch.testing.assert_close(rewards[[0, 1]], torch.tensor([expected[True], expected[False]]))


@pytest.mark.parametrize("prompt_format", [None, "chat"])
@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "gemma"])
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_end_of_a_turn_is_known_from_the_chat_template(kind, name, prompt_format):
    if kind == "unigram" and prompt_format == "chat":
        pytest.skip("the tiny tokenizer does not know the characters of delimiters, so chats are refused")
    base, model = with_template(name, kind), reward_model()
    prompt = ids(base, base.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    answer = ids(base, ANSWER)
    fast = RetokenizingScorer(model, base, prompt_format=prompt_format)
    slow = ReferenceScorer(model, base, prompt_format=prompt_format, prompts=[prompt])
    rewards = rewards_of_candidates(fast, prompt, answer, [TURN_END, EOS, 3, answer[0]])
    torch.testing.assert_close(rewards, rewards_of_candidates(slow, prompt, answer, [TURN_END, EOS, 3, answer[0]]))
    detokenizer = Detokenizer(base)
    question, text = detokenizer.decode(prompt), detokenizer.decode([*prompt, *answer])
    if prompt_format == "chat":
        tokens = [
            rendered("chat", model, CHAT[0]["content"], detokenizer.answer(question, text), is_finished)
            for is_finished in (True, False)
        ]
    else:
        tokens = [rendered(None, model, text, "", is_finished) for is_finished in (True, False)]
    closed, unfinished = (reward_of(model, ids_) for ids_ in tokens)
    torch.testing.assert_close(rewards[:3], torch.tensor([closed, closed, unfinished]))


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_end_of_a_turn(kind):
    for name in TEMPLATES:
        expected = {"zephyr": {EOS}, "llama2": set(), "plain_roles": set()}.get(name, {TURN_END})
        assert end_of_turn_tokens(with_template(name, kind)) == expected
    assert end_of_turn_tokens(tiny_tokenizer(kind=kind)) == set()


@pytest.mark.parametrize(
    "template",
    [
        *map(closing, ["", "\n", " bad", "映<|im_end|>", "{{ m['content'] }}<|im_end|>"]),
        "{{ raise_exception('no') }}", "{{ messages[0]['content']['text']['more'] }}", "{{ 1 + 'a' }}", "<|im_end|>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "unigram"])
def test_no_end_is_guessed(kind, template):
    tokenizer = tiny_tokenizer(kind=kind, chat_template=template)
    tokenizer.add_tokens(["\n", "\n\n"])
    assert end_of_turn_tokens(tokenizer) == set()


def test_an_end_of_turn_that_is_added_but_not_special():
    tokenizer = tiny_tokenizer(chat_template=closing("<end_of_turn>\n"))
    assert end_of_turn_tokens(tokenizer) == set()
    tokenizer.add_tokens(["<end_of_turn>"])
    assert end_of_turn_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids("<end_of_turn>")}


def test_the_processor_and_the_weighted_sum_pass_them_on():
    base, model = tiny_tokenizer(vocab_size=420), reward_model()
    prompt, answer = ids(base, "was it?"), ids(base, " " + ANSWER)
    word = ids(base, " bad")[0]
    closed = reward_of(model, rendered(None, model, "was it?", " " + ANSWER, True))
    seen = []

    def length(prompts, responses):
        seen.extend(responses)
        return [float(len(response)) for response in responses]

    processor = PartialRewardLogitsProcessor(model, tokenizer=base, eos_token_id=word)
    weighted = WeightedScorer([model, length], [1.0, 1.0], tokenizer=base, eos_token_id=[word])
    rewards = rewards_of_candidates(processor.scorer, prompt, answer, [word, EOS])
    torch.testing.assert_close(rewards, torch.tensor([closed, closed]))
    rewards = rewards_of_candidates(weighted, prompt, answer, [word, EOS])
    torch.testing.assert_close(rewards, torch.tensor([closed, closed]) + len(" " + ANSWER))
    assert not any("bad" in response for response in seen)


def test_scorers_that_share_token_ids_are_unchanged():
    tokenizer = tiny_tokenizer()
    model = RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)
    rows = torch.tensor([[20, 30, 40]])
    call = rows, torch.ones_like(rows), torch.tensor([[EOS, TURN_END, 50]])
    torch.testing.assert_close(
        make_scorer(model, tokenizer, eos_token_id=[TURN_END]).score(*call), make_scorer(model, tokenizer).score(*call)
    )


@pytest.mark.parametrize("wrong", [True, [EOS, False], -1, [EOS, -1], 1.0, "4", [None], {4}, torch.tensor([4])])
def test_wrong_end_tokens(wrong):
    base, model = tiny_tokenizer(vocab_size=420), reward_model()
    shared = RewardModel(tiny_reward_model())
    for make in (
        lambda: PartialRewardLogitsProcessor(model, tokenizer=base, eos_token_id=wrong),
        lambda: PartialRewardLogitsProcessor(shared, eos_token_id=wrong),
        lambda: RetokenizingScorer(model, base, eos_token_id=wrong),
        lambda: ReferenceScorer(model, base, eos_token_id=wrong),
        lambda: WeightedScorer([model], [1.0], tokenizer=base, eos_token_id=wrong),
    ):
        with pytest.raises(InvalidArgumentError, match="Expected eos_token_id to be a token id of 0 or more"):
            make()


def test_a_ready_made_scorer_has_its_own():
    scorer = RetokenizingScorer(reward_model(), tiny_tokenizer(vocab_size=420))
    with pytest.raises(InvalidArgumentError, match="Expected prompt_format, eos_token_id, .* to be left out"):
        PartialRewardLogitsProcessor(scorer, eos_token_id=TURN_END)
