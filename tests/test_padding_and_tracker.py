"""The attention mask inferred from rows, and the common prefix of lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgtg_logits.errors import PaddingError
from rgtg_logits.padding import infer_attention_mask
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
