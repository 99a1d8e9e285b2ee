"""Where prompts end, in real runs of `generate` and in random histories."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.text.prompt_memory import PromptMemory
from rgtg_logits.testing import PAD, tiny_base_model

PROMPTS = [[7, 3, 9, 11, 4, 20, 31], [5, 8], [2, 13, 40, 41]]
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beam_sampling": {"num_beams": 3, "do_sample": True},
}


class Splitting(LogitsProcessor):
    """Splits the rows of every call and compares with the prompts that it knows."""

    def __init__(self, memory):
        self.memory, self.prompts, self.calls = memory, [], 0

    def __call__(self, input_ids, scores):
        repeat = len(input_ids) // len(self.prompts)
        texts = [row[next((i for i, token in enumerate(row) if token != PAD), 0) :] for row in input_ids.tolist()]
        expected = [len(prompt) for prompt in self.prompts for _ in range(repeat)]
        assert self.memory.prompt_lengths(texts) == expected
        self.calls += 1
        return scores


def generate(processor, prompts, base, **arguments):
    processor.prompts = prompts
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    options = {"max_new_tokens": 6, "pad_token_id": PAD, "suppress_tokens": [PAD], "top_k": 0, **arguments}
    with torch.no_grad():
        output = base.generate(
            input_ids=ids, attention_mask=(ids != PAD).long(), logits_processor=[processor], **options
        )
    return output.tolist()


@pytest.fixture(scope="module")
def base():
    return tiny_base_model()


@pytest.mark.parametrize("mode", MODES)
def test_prompts_are_found_in_every_mode_and_in_repeated_calls(base, mode):
    processor = Splitting(PromptMemory())
    for prompts in (PROMPTS, PROMPTS[:2], [[9, 9, 9]], PROMPTS):
        generate(processor, prompts, base, **MODES[mode])
    assert processor.calls >= 16


def test_prompts_are_found_in_assisted_decoding(base):
    processor = Splitting(PromptMemory())
    generate(processor, PROMPTS[:1], base, assistant_model=tiny_base_model(seed=3), max_new_tokens=12)
    generate(processor, [[7, 3, 9, 7, 3, 9, 7]], base, prompt_lookup_num_tokens=3, max_new_tokens=12)
    assert processor.calls >= 24


def test_a_conversation_that_goes_on_is_a_new_prompt(base):
    processor = Splitting(PromptMemory())
    prompt = PROMPTS[0]
    for turn in range(3):
        answer = generate(processor, [prompt], base, eos_token_id=None)[0]
        assert len(answer) == len(prompt) + 6
        prompt = [*answer, 30 + turn]


def test_a_prompt_that_is_another_plus_one_token_in_one_batch():
    memory = PromptMemory()
    assert memory.prompt_lengths([[5, 8], [5, 8, 9]]) == [2, 3]
    assert memory.prompt_lengths([[5, 8, 9], [5, 8, 9, 4]]) == [2, 3]


def test_the_same_prompts_again_of_which_one_is_another_plus_one_token():
    memory = PromptMemory()
    for _ in range(3):
        assert memory.prompt_lengths([[5, 8], [5, 8, 9]]) == [2, 3]
        assert memory.prompt_lengths([[5, 8, 9], [5, 8, 9, 4]]) == [2, 3]
        assert memory.prompt_lengths([[5, 8, 9, 4], [5, 8, 9, 4, 6]]) == [2, 3]


def test_the_ambiguous_case_is_taken_for_a_continuation():
    memory = PromptMemory()
    memory.prompt_lengths([[5, 8]])
    assert memory.prompt_lengths([[5, 8, 9]]) == [2]
    assert memory.prompt_lengths([[5, 8, 9, 4, 6]]) == [5]


def test_an_answer_goes_on_with_a_token_that_it_was_offered():
    memory = PromptMemory()
    assert memory.prompt_lengths([[5, 8]], [[9, 4]]) == [2]
    assert memory.prompt_lengths([[5, 8, 7]], [[1, 2]]) == [3], "7 was not offered"
    assert memory.prompt_lengths([[5, 8, 9]], [[1, 2]]) == [2]
    assert memory.prompt_lengths([[5, 8, 9, 3]], [[1, 2]]) == [4]
    # Shown again, it may go on by the tokens of both times, and by any token once it was shown without candidates.
    memory.prompt_lengths([[5, 8]], [[3]])
    assert memory.prompt_lengths([[5, 8, 4], [5, 8, 3], [5, 8, 6]], [[1]] * 3) == [2, 2, 3]
    memory.prompt_lengths([[5, 8]])
    memory.prompt_lengths([[5, 8]], [[3]])
    assert memory.prompt_lengths([[5, 8, 2]], [[1]]) == [2]


def test_what_cannot_be_a_prompt_is_a_draft_of_an_answer():
    def is_prompt(row):
        return row[-1] != 7

    memory = PromptMemory()
    assert memory.prompt_lengths([[5, 8]], [[9]], is_prompt) == [2]
    assert memory.prompt_lengths([[5, 8, 7], [5, 8, 6], [3, 7]], [[1]] * 3, is_prompt) == [2, 3, 2]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_random_requests_that_grow_token_by_token_and_come_in_any_order(data):
    """Requests begin with whatever was shown before, and may be decided as soon as an offered token decides."""
    tokens = st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)
    memory, offered, prompts, running = PromptMemory(), {}, set(), []

    def show(requests):
        offers = [data.draw(tokens) for _ in requests]
        assert memory.prompt_lengths([row for row, _ in requests], offers) == [length for _, length in requests]
        for (row, _), more in zip(requests, offers, strict=True):
            offered.setdefault(tuple(row), set()).update(more)

    for _ in range(data.draw(st.integers(1, 25))):
        if running and data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.sampled_from(range(len(running))), min_size=1, max_size=3, unique=True))
            grown = {}
            for index in chosen:
                row, length = running[index]
                longer = [*row, data.draw(st.sampled_from(sorted(offered[tuple(row)])))]
                if tuple(longer) not in prompts:
                    grown[index] = (longer, length)
            show(list(grown.values()))
            for index, request in grown.items():
                running[index] = request
        else:
            start = data.draw(st.sampled_from([(), *sorted(offered)]))
            prompt = (*start, *data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=2)))
            is_answer = prompt in offered and prompt not in prompts
            if is_answer or prompt[-1] in offered.get(prompt[:-1], ()):
                continue
            prompts.add(prompt)
            running.append(([*prompt], len(prompt)))
            show(running[-1:])


def test_tokens_are_not_confused_with_others_that_have_the_same_bytes():
    memory = PromptMemory()
    assert memory.prompt_lengths([[1]]) == [1]
    assert memory.prompt_lengths([[1 << 32, 0]]) == [2]
    assert memory.prompt_lengths([[1, 0]]) == [1]


def test_what_was_not_seen_for_long_is_forgotten_and_the_last_rows_never():
    memory = PromptMemory(capacity=3)
    memory.prompt_lengths([[1, 1]])
    memory.prompt_lengths([[2, 2]])
    memory.prompt_lengths([[1, 1, 5]])
    assert memory.prompt_lengths([[3, 3]]) == [2]
    assert memory.prompt_lengths([[2, 2, 5]]) == [3], "the prompt [2, 2] was forgotten"
    rows = [[token, token] for token in range(10, 20)]
    assert memory.prompt_lengths(rows) == [2] * 10
    assert memory.prompt_lengths([[*row, 5] for row in rows]) == [2] * 10


def test_a_capacity_of_nothing():
    with pytest.raises(InvalidArgumentError, match="Expected capacity to be a positive number of prefixes, but got 0"):
        PromptMemory(0)


@settings(deadline=None)
@given(st.data())
def test_random_histories_of_prompts(data):
    """Every new prompt and every new turn has a token of its own, so that none looks like another text's answer."""
    memory, running = PromptMemory(), {}
    for number in range(data.draw(st.integers(1, 6))):
        if running and data.draw(st.booleans()):
            history = data.draw(st.sampled_from(sorted(running)))
            turn = [200 + number, *data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))]
            prompt = [*running[history][-1][0], *turn]
        else:
            prompt = [100 + number, *data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=5))]
        running[number] = [(prompt, len(prompt))]
        for _ in range(data.draw(st.integers(1, 5))):
            shown = data.draw(st.lists(st.sampled_from(running[number]), min_size=1, max_size=4))
            assert memory.prompt_lengths([row for row, _ in shown]) == [length for _, length in shown]
            extended = [([*row, data.draw(st.integers(0, 3))], length) for row, length in shown]
            running[number] = shown + extended
