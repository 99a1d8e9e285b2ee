"""Diversity of texts: distinct-n within one answer, self-BLEU between answers to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from rgtg_logits.errors import InvalidArgumentError


def distinct(ids: Sequence[int], n: int) -> float:
    """Distinct-n: share of different n-grams in an answer (Li et al. 2016, arXiv 1510.03055, there over all answers).

    Args:
        ids: Token ids of the answer.
        n: Tokens of an n-gram.

    Returns:
        Between 0 and 1, where 1 is no repetition; 1 for an answer too short to have an n-gram.

    Raises:
        InvalidArgumentError: If n is below 1.
    """
    if n < 1:
        raise InvalidArgumentError(f"Expected n-grams of 1 token or more, but got n = {n}. Use 1, 2 or 3.")
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def self_bleu(answers: Sequence[str]) -> float:
    """Self-BLEU: mean sentence BLEU of each answer to a prompt against the others; high where answers are alike.

    Texygen (Zhu et al. 2018, arXiv 1802.01886) takes all texts of a model as references of each other. Here the
    references are the other answers to the same prompt, because answers to different prompts differ anyway. The BLEU is
    sacrebleu's sentence BLEU: up to 4-grams of "13a" tokens, or as many as the answer has, with exponential smoothing.
    It grows with the number of references, so only values of equally many answers compare. An answer that equals
    another one counts 100, even without words.

    Args:
        answers: Two texts or more.

    Returns:
        From 0, no word in common, to 100, all answers equal.

    Raises:
        InvalidArgumentError: If there are fewer than two answers.
    """
    if len(answers) < 2:
        raise InvalidArgumentError(
            f"Expected two answers or more, to compare with each other, but got {len(answers)}. Draw more seeds."
        )
    # With effective order, the 4-grams that a short answer does not have are left out instead of counting 0.
    bleu = BLEU(effective_order=True)
    total = 0.0
    for number, answer in enumerate(answers):
        others = [*answers[:number], *answers[number + 1 :]]
        total += 100.0 if answer in others else bleu.sentence_score(answer, others).score
    return total / len(answers)
