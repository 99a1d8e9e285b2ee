"""How varied texts are: within one answer, and between answers to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from rgtg_logits.errors import InvalidArgumentError


def distinct(ids: Sequence[int], n: int) -> float:
    """Share of different n-grams in one answer, as in Li et al. 2016 (arXiv 1510.03055), but answer by answer.

    Args:
        ids: Tokens of the answer.
        n: How many tokens an n-gram has.

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
    """Mean sentence BLEU of each answer to a prompt against the others as references: high where all are alike.

    Texygen (Zhu et al. 2018, arXiv 1802.01886) takes all texts of a model as references to each other. Here they are
    the answers to one prompt, because answers to different prompts differ anyway. BLEU is sacrebleu's for sentences: up
    to 4-grams of its "13a" tokens, as many as the answer has, with exponential smoothing. It grows with the number of
    references, so only numbers from equally many answers compare. An answer that is there twice counts 100, also if it
    has no words.

    Args:
        answers: Two texts or more.

    Returns:
        From 0, no word in common, to 100, all the same.

    Raises:
        InvalidArgumentError: If there are fewer than two answers.
    """
    if len(answers) < 2:
        raise InvalidArgumentError(
            f"Expected two answers or more, to compare with each other, but got {len(answers)}. Draw more seeds."
        )
    bleu, total = BLEU(effective_order=True), 0.0
    for number, answer in enumerate(answers):
        others = [*answers[:number], *answers[number + 1 :]]
        total += 100.0 if answer in others else bleu.sentence_score(answer, others).score
    return total / len(answers)
