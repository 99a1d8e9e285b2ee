"""Splits of the reviews, and prompts made from them.

The train reviews are shuffled by the seed and cut in two: half A trains the gold reward, half B the two judges.
Training prompts come from all of them in another order. The first prompts of val are for the final evaluation, the next
ones for held-out pairs.

A prompt is `<|endoftext|>` and the first twelve tokens of a review, like the beginnings of the base model's training
texts.
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
    # Shuffled once more, because otherwise the first prompts would come from the half of the gold model.
    return first_tokens(load_reviews(data, "train").shuffle(seed=seed).shuffle(seed=seed + 1), tokenizer, count)


def val_prompts(data: str, tokenizer: PreTrainedTokenizerBase, start: int, count: int, seed: int) -> list[list[int]]:
    """Prompts on which nothing is trained, beginning with number `start`."""
    return first_tokens(load_reviews(data, "val").shuffle(seed=seed), tokenizer, start + count)[start:]


def first_tokens(reviews: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """The first `count` prompts, as token ids; reviews that are shorter than a prompt are skipped."""
    prompts: list[list[int]] = []
    for text in reviews["text"]:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=PROMPT_TOKENS)["input_ids"]
        if len(ids) == PROMPT_TOKENS:
            prompts.append([tokenizer.eos_token_id, *ids])
        if len(prompts) == count:
            return prompts
    raise ValueError(
        f"Expected {count} reviews of at least {PROMPT_TOKENS} tokens, but got {len(prompts)}. Ask for fewer prompts."
    )
