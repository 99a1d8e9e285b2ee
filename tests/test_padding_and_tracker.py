"""The attention mask inferred from rows, and the plans of the prefix tracker."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits.errors import PaddingError
from rgtg_logits.padding import PADDING, infer_attention_mask
from rgtg_logits.scorers.engine.tracker import PrefixTracker
from rgtg_logits.tokenization import common_prefix_length as fast_common_prefix_length


def rows(*lists):
    return torch.tensor(lists)


def test_leading_pads_are_padding_and_others_are_text():
    assert infer_attention_mask(rows([0, 0, 5, 0, 6], [7, 0, 5, 0, 6]), 0).tolist() == [
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]


def test_two_trailing_pads_mean_finished_and_one_does_not():
    assert infer_attention_mask(rows([5, 6, 1, 1], [5, 6, 7, 1]), 1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_row_of_pads_alone_is_all_padding():
    assert infer_attention_mask(rows([1], [1]), 1).tolist() == [[0], [0]]


def test_the_prompt_mask_tells_a_leading_pad_that_is_text():
    mask = infer_attention_mask(
        rows([1, 1, 5, 9], [1, 1, 5, 8], [1, 7, 1, 1]), 1, rows([0, 1, 1], [1, 1, 1], [1, 1, 1])
    )
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_a_prompt_mask_covers_return_sequences_and_finished_rows():
    mask = infer_attention_mask(rows([1, 5, 9, 9], [1, 5, 1, 1]), 1, rows([0, 1]))
    assert mask.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_a_prompt_mask_of_other_prompts():
    with pytest.raises(PaddingError, match=r"the 2 prompts of 2 tokens .* but got 3 rows of 1 tokens. Make a new"):
        infer_attention_mask(rows([1], [1], [1]), 1, rows([0, 1], [1, 1]))


def common_prefix_length(one, other):
    """Length of the common prefix, token by token."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


TOKENS = st.lists(st.integers(0, 2), max_size=9)


@given(TOKENS, TOKENS, TOKENS)
def test_the_common_prefix_of_lists(shared, one, other):
    first, second = shared + one, shared + other
    assert fast_common_prefix_length(first, second) == common_prefix_length(first, second)
    assert fast_common_prefix_length(tuple(first), second) == common_prefix_length(first, second)


PADDED_IDS = st.integers(1, 4).flatmap(
    lambda length: st.lists(st.lists(st.integers(PADDING, 2), min_size=length, max_size=length), min_size=1, max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PADDED_IDS, min_size=1, max_size=8))
def test_plans_on_random_histories(history):
    """The columns that a plan keeps are right, and no other choice of source rows keeps more."""
    tracker, known = PrefixTracker(), []
    for padded_ids in history:
        plan = tracker.plan(torch.tensor(padded_ids))
        if not known:
            assert plan.kept_length == 0
        else:
            sources = range(len(padded_ids)) if plan.source_rows is None else plan.source_rows.tolist()
            for row, source in zip(padded_ids, sources, strict=True):
                assert row[: plan.kept_length] == known[source][: plan.kept_length]
            assert plan.kept_length == min(max(common_prefix_length(row, old) for old in known) for row in padded_ids)
        tracker.remember(torch.tensor(padded_ids))
        known = padded_ids


@settings(max_examples=100, deadline=None)
@given(PADDED_IDS, st.randoms(use_true_random=False))
def test_extensions_and_rewinds(padded_ids, random):
    """Extending, permuting, duplicating and dropping keep everything; a rewind keeps the rest."""
    tracker = PrefixTracker()
    tracker.remember(torch.tensor(padded_ids))
    length = len(padded_ids[0])
    sources = [random.randrange(len(padded_ids)) for _ in range(random.randrange(1, 6))]
    now = [padded_ids[source] + [random.randrange(3)] for source in sources]
    assert tracker.plan(torch.tensor(now)).kept_length == length
    assert tracker.plan(torch.tensor([[*row, 0] for row in padded_ids])).source_rows is None
    cut = random.randrange(1, length + 1)
    rewound = tracker.plan(torch.tensor([row[:cut] for row in padded_ids]))
    assert rewound.source_rows is None and rewound.kept_length == cut
    tracker.forget()
    assert tracker.plan(torch.tensor(padded_ids)).kept_length == 0
