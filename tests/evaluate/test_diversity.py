"""Diversity of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate.diversity import distinct, self_bleu

ANSWERS = [
    "The film was a good one, and the cast was good too.",
    "The film was a bad one, and the plot was worse.",
    "I have seen the film twice, and the cast was good.",
]


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [([1, 2, 1, 2], 1, 2 / 4), ([1, 2, 1, 2], 2, 2 / 3), ([1, 2, 1, 2], 3, 1.0), ([7] * 5, 2, 1 / 4), ([1, 2], 3, 1.0)],
)
def test_distinct_counts_different_grams(ids, n, share):
    assert distinct(ids, n) == share


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_distinct_is_a_share(ids, n):
    share = distinct(ids, n)
    assert 0 < share <= 1
    assert distinct([id_ + 5 for id_ in ids], n) == share
    assert distinct(ids[::-1], n) == share


def test_distinct_refuses_empty_grams():
    with pytest.raises(InvalidArgumentError, match="n = 0"):
        distinct([1, 2], 0)


class TestSelfBleu:
    """Where sacrebleu is installed."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("sacrebleu")

    def test_the_same_answers_have_100(self):
        for answer in ("one word after another", "word", ""):
            assert self_bleu([answer] * 3) == pytest.approx(100)

    def test_the_same_words_and_no_shortcut_have_100(self):
        assert self_bleu(["a b c d e", "a b  c d e"]) == pytest.approx(100)

    def test_answers_without_a_common_word_have_0(self):
        assert self_bleu(["a b c d e", "f g h i j", "k l m n o"]) == 0

    def test_an_empty_answer_is_like_no_other(self):
        assert self_bleu(["", "a b c d e"]) == 0

    def test_by_hand(self):
        """The first has 3/4, 2/3 and 1/2 of its 1- to 3-grams in the other, and half of one 4-gram by smoothing."""
        score = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)
        assert self_bleu(["a b c d", "a b c e"]) == pytest.approx(score)

    def test_a_short_answer_pays_for_its_length(self):
        """ "a b" has all its n-grams in "a b c d" but half its length; that one has 2/4, 1/3, (0+½)/2 and (0+¼)/1."""
        short = 100 * 2.718281828459045 ** (1 - 4 / 2)
        long = 100 * (2 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 4)
        assert self_bleu(["a b", "a b c d"]) == pytest.approx((short + long) / 2)

    def test_is_the_mean_of_sentence_bleu(self):
        from sacrebleu import sentence_bleu

        scores = [
            sentence_bleu(ANSWERS[0], ANSWERS[1:], use_effective_order=True).score,
            sentence_bleu(ANSWERS[1], [ANSWERS[0], ANSWERS[2]], use_effective_order=True).score,
            sentence_bleu(ANSWERS[2], ANSWERS[:2], use_effective_order=True).score,
        ]
        assert 10 < min(scores) < max(scores) < 90
        assert self_bleu(ANSWERS) == pytest.approx(sum(scores) / 3)

    def test_order_and_more_of_the_same(self):
        assert self_bleu(ANSWERS[::-1]) == pytest.approx(self_bleu(ANSWERS))
        assert self_bleu([*ANSWERS, ANSWERS[0]]) > self_bleu(ANSWERS)

    def test_one_answer_has_none(self):
        with pytest.raises(InvalidArgumentError, match="got 1"):
            self_bleu(["alone"])
