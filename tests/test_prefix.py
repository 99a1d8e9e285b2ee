import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits.errors import PaddingError
from rgtg_logits.padding import PADDING, text_mask
from rgtg_logits.scorers.engine.tracker import PrefixTracker


def rows(*lists):
    return torch.tensor(lists)


def test_leading_pads_are_padding_and_others_are_text():
    assert text_mask(rows([0, 0, 5, 0, 6], [7, 0, 5, 0, 6]), 0).tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_two_trailing_pads_mean_finished_and_one_does_not():
    assert text_mask(rows([5, 6, 1, 1], [5, 6, 7, 1]), 1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_row_of_pads_alone_is_all_padding():
    assert text_mask(rows([1], [1]), 1).tolist() == [[0], [0]]


def test_the_prompt_mask_tells_a_leading_pad_that_is_text():
    mask = text_mask(rows([1, 1, 5, 9], [1, 1, 5, 8], [1, 7, 1, 1]), 1, rows([0, 1, 1], [1, 1, 1], [1, 1, 1]))
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_a_prompt_mask_covers_return_sequences_and_finished_rows():
    mask = text_mask(rows([1, 5, 9, 9], [1, 5, 1, 1]), 1, rows([0, 1]))
    assert mask.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_a_prompt_mask_of_other_prompts():
    with pytest.raises(PaddingError, match=r"the 2 prompts of 2 tokens .* but got 3 rows of 1 tokens. Make a new"):
        text_mask(rows([1], [1], [1]), 1, rows([0, 1], [1, 1]))


@pytest.mark.parametrize("batch", [([5, 6], [7, 8]), ([5, 5, 8], [5, 6, 7])])
def test_unknown_pad_where_rows_may_be_padded(batch):
    with pytest.raises(PaddingError, match=r"Expected to know which token pads, .* the 2 rows .* Pass pad_token_id="):
        text_mask(rows(*batch), None)


@pytest.mark.parametrize("batch", [([5, 5, 8],), ([5, 6, 8], [5, 6, 8]), ([5, 6, 8], [5, 7, 8])])
def test_unknown_pad_where_no_row_can_be_padded(batch):
    assert text_mask(rows(*batch), None).all()


def common(one, other):
    """Length of the common prefix, the obvious way."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


KEYS = st.integers(1, 4).flatmap(
    lambda length: st.lists(st.lists(st.integers(PADDING, 2), min_size=length, max_size=length), min_size=1, max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=8))
def test_plans_on_random_histories(history):
    """What a plan keeps is right, and no other choice of parents keeps more."""
    tracker, known = PrefixTracker(), []
    for keys in history:
        plan = tracker.plan(torch.tensor(keys))
        if not known:
            assert plan.keep == 0
        else:
            parents = range(len(keys)) if plan.parents is None else plan.parents.tolist()
            for row, parent in zip(keys, parents, strict=True):
                assert row[: plan.keep] == known[parent][: plan.keep]
            assert plan.keep == min(max(common(row, old) for old in known) for row in keys)
        tracker.remember(torch.tensor(keys))
        known = keys


@settings(max_examples=100, deadline=None)
@given(KEYS, st.randoms(use_true_random=False))
def test_the_names_of_what_happens(keys, random):
    """Extending, permuting, duplicating and dropping keep everything; a rewind keeps what is left."""
    tracker = PrefixTracker()
    tracker.remember(torch.tensor(keys))
    length = len(keys[0])
    parents = [random.randrange(len(keys)) for _ in range(random.randrange(1, 6))]
    now = [keys[parent] + [random.randrange(3)] for parent in parents]
    assert tracker.plan(torch.tensor(now)).keep == length
    assert tracker.plan(torch.tensor([[*row, 0] for row in keys])).parents is None
    cut = random.randrange(1, length + 1)
    rewound = tracker.plan(torch.tensor([row[:cut] for row in keys]))
    assert rewound.parents is None and rewound.keep == cut
    tracker.forget()
    assert tracker.plan(torch.tensor(keys)).keep == 0
