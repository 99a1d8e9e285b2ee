"""Preference pairs: samples of the base model, compared by the gold reward.

Text and tokens are a known trap here, so this is the agreement that training and decoding share:

- A prompt is `<|endoftext|>` and the first twelve tokens of a review, as the base model saw reviews in training.
- The pairs carry the token ids that were sampled (`chosen_ids`, `rejected_ids`, prompt included), and TRL trains on ids
  where it finds them. Decoding and tokenising again would not always give the tokens that were sampled, so the reward
  model would learn prefixes that guidance never meets.
- A sample that reached `<|endoftext|>` keeps it; one cut off at the token limit has none. TRL appends one to every text
  that lacks it: trained on the texts, a reward model would take the end of a review for a matter of counting to 48.
  `close` does the same to the ids (`--close_texts`), to see what it changes.

`prompt`, `chosen` and `rejected` are the same in words, for people and for other trainers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.progress import track
from sentiment import SentimentModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_TOKENS = 12


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


def up_to_end(ids: Sequence[int], end: int) -> list[int]:
    """Cuts a continuation after its end-of-text token, if it has one: `generate` fills the rest with padding."""
    ids = list(ids)
    return ids[: ids.index(end) + 1] if end in ids else ids


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    new_tokens: int,
    batch_size: int,
) -> list[list[list[int]]]:
    """Draws continuations from the base model itself: temperature 1, nothing truncated.

    Returns:
        Per prompt, per sample, the token ids of the continuation.
    """
    drawn: list[list[list[int]]] = []
    per_batch = max(1, batch_size // samples)
    for start in track(range(0, len(prompts), per_batch), description="Sampling pairs"):
        batch = torch.tensor(prompts[start : start + per_batch])
        rows = model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=new_tokens,
            do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=samples,
        )  # fmt: skip
        new = [up_to_end(row, tokenizer.eos_token_id) for row in rows[:, batch.shape[1] :].tolist()]
        drawn += [new[i : i + samples] for i in range(0, len(new), samples)]
    return drawn


def close(pairs: Sequence[dict[str, Any]], end: int) -> list[dict[str, Any]]:
    """Ends every text with the end-of-text token, cut or not, which is what TRL does to pairs of texts."""

    def closed(ids: list[int]) -> list[int]:
        return ids if ids[-1] == end else [*ids, end]

    return [{**pair, **{key: closed(pair[key]) for key in ("chosen_ids", "rejected_ids")}} for pair in pairs]


def compare(
    gold: SentimentModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    drawn: Sequence[Sequence[Sequence[int]]],
    seed: int,
) -> list[dict[str, Any]]:
    """Pairs sample 1 with 2, 3 with 4, ... of each prompt; the label is a Bradley-Terry draw on the gold reward."""
    rng = np.random.default_rng(seed)
    couples = [(p, a, b) for p, c in zip(prompts, drawn, strict=True) for a, b in zip(c[::2], c[1::2], strict=True)]
    rewards = [
        gold.log_odds(tokenizer.batch_decode([[*c[0], *c[side]] for c in couples], skip_special_tokens=True))
        for side in (1, 2)
    ]
    first_wins = rng.random(len(couples)) < 1 / (1 + np.exp(rewards[1] - rewards[0]))
    rows = []
    for (prompt, *both), *scores, first in zip(couples, *rewards, first_wins, strict=True):
        win, lose = (0, 1) if first else (1, 0)
        rows.append(
            {
                "prompt": tokenizer.decode(prompt),
                "chosen": tokenizer.decode(both[win]),
                "rejected": tokenizer.decode(both[lose]),
                "chosen_ids": [*prompt, *both[win]],
                "rejected_ids": [*prompt, *both[lose]],
                "chosen_gold": float(scores[win]),
                "rejected_gold": float(scores[lose]),
            }
        )
    return rows
