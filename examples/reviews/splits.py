"""Who sees which review, and what a prompt is.

The train reviews are shuffled by the seed and cut in two: half A teaches the gold reward, half B the two judges.
Prompts to train on come from all of them in another order; the first prompts of val are for the final evaluation, and
those behind them for held-out pairs.

A prompt is `<|endoftext|>` and the first twelve tokens of a review, as the base model saw reviews in training.
"""

from __future__ import annotations

from datasets import Dataset
from reviews import load_reviews
from transformers import PreTrainedTokenizerBase

PROMPT_TOKENS = 12
EVALUATION_PROMPTS = 500


def halves(data: str, seed: int) -> tuple[Dataset, Dataset]:
    """The train reviews of the gold reward, and those of the judges."""
    train = load_reviews(data, "train").shuffle(seed=seed)
    half = len(train) // 2
    return train.select(range(half)), train.select(range(half, len(train)))


def train_prompts(data: str, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[list[int]]:
    """Prompts to train and to tune on, as token ids."""
    # Shuffled once more, because otherwise the first prompts came from the half that the gold model has learnt.
    return first_tokens(load_reviews(data, "train").shuffle(seed=seed).shuffle(seed=seed + 1), tokenizer, count)


def val_prompts(data: str, tokenizer: PreTrainedTokenizerBase, start: int, count: int, seed: int) -> list[list[int]]:
    """Prompts on which nothing is trained, from the `start`-th on."""
    return first_tokens(load_reviews(data, "val").shuffle(seed=seed), tokenizer, start + count)[start:]


def first_tokens(reviews: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """The first `count` prompts, as token ids; reviews that are shorter than a prompt are passed over."""
    found: list[list[int]] = []
    for text in reviews["text"]:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=PROMPT_TOKENS)["input_ids"]
        if len(ids) == PROMPT_TOKENS:
            found.append([tokenizer.eos_token_id, *ids])
        if len(found) == count:
            return found
    raise ValueError(f"Expected {count} reviews of at least {PROMPT_TOKENS} tokens, but found {len(found)}.")
