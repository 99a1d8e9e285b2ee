"""The gold reward, a judge that never labels anything, and data for every objective from the same answers.

    python examples/reviews/make_data.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

Writes `gold.json` and `judge.json` (sentiment models of disjoint halves of the star-rated train reviews), and from the
answers of sample_answers.py, for each reward and number of pairs, two data sets for `rgtg train`, as folders with
`train.jsonl` and `test.jsonl`:

- `data/gold-pairs-8000`: answers 1 and 2 of a prompt, 3 and 4, ...; which of them is chosen is a Bradley-Terry draw;
- `data/gold-labels-8000`: each of the same answers with its reward.

Smaller sets are the first rows of larger ones. Both hold the token ids that were sampled (see sample_answers.py). An
answer that was cut has no end-of-text token: with one, as TRL appends to texts, a reward model would learn to expect it
after a number of tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judges
import numpy as np
from files import once, read_rows, write_rows
from reviews import load_reviews
from sentiment import SentimentModel
from splits import halves
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

REWARDS: dict[str, Callable[..., list[float]]] = {"gold": judges.gold, "plain": judges.plain}
HELD_OUT_REVIEWS = 2000


@dataclass
class Arguments:
    """The reviews, the tokenizer, the folder of the answers, and the sizes of the data sets."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    seed: int = 0
    pairs: list[int] = field(default_factory=lambda: [500, 2000, 8000, 32_000])
    plain_pairs: list[int] = field(default_factory=lambda: [8000])


def main(args: Arguments) -> None:
    """Makes the files that are missing, as far as there are answers for them."""
    out = Path(args.output_dir)
    os.environ["RGTG_REVIEWS"] = str(out)
    once(out / "gold.json", lambda: train_sentiment(args, 0))
    once(out / "judge.json", lambda: train_sentiment(args, 1))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for reward, sizes in (("gold", args.pairs), ("plain", args.plain_pairs)):
        for size in sizes:
            make_sets(out, tokenizer, reward, size, args.seed)
    close_pairs(out / "data", "gold-pairs-8000", tokenizer.eos_token_id)


def train_sentiment(args: Arguments, half: int) -> dict[str, Any]:
    """A sentiment model of one half of the train reviews, and its accuracy on reviews of val."""
    model = SentimentModel.fit(halves(args.data, args.seed)[half])
    val = load_reviews(args.data, "val").shuffle(seed=args.seed)
    held_out = val.select(range(max(0, len(val) - HELD_OUT_REVIEWS), len(val)))
    return {"accuracy": model.accuracy(held_out), "reviews": len(held_out), **model.to_dict()}


def make_sets(out: Path, tokenizer: PreTrainedTokenizerBase, reward: str, size: int, seed: int) -> None:
    """Writes the pairs and the labelled answers of one reward and one size, if there are enough answers."""
    folders = {kind: out / "data" / f"{reward}-{kind}-{size}" for kind in ("pairs", "labels")}
    if all((folder / f"{split}.jsonl").exists() for folder in folders.values() for split in ("train", "test")):
        return
    for split, name, number in (("train", "train", size), ("test", "held_out", None)):
        couples = read_couples(out / "answers", name, number)
        if number is not None and len(couples) < number:
            print(
                f"Only {len(couples)} of {number} pairs are sampled: run sample_answers.py, then this again for "
                f"{', '.join(map(str, folders.values()))}."
            )
            return
        rewards = [
            text_rewards(REWARDS[reward], tokenizer, [(couple[0], couple[side]) for couple in couples])
            for side in (1, 2)
        ]
        pairs, labels = rows_of(couples, np.array(rewards), seed + (split == "test"))
        write_rows(folders["pairs"] / f"{split}.jsonl", pairs)
        write_rows(folders["labels"] / f"{split}.jsonl", labels)


def close_pairs(data: Path, name: str, end: int) -> None:
    """Writes the same pairs with the end-of-text token after every answer, cut or not, as TRL appends it to texts."""
    for split in ("train", "test"):
        source = data / name / f"{split}.jsonl"
        target = data / name.replace("gold", "closed") / f"{split}.jsonl"
        if target.exists() or not source.exists():
            continue
        rows = read_rows(source)
        for row in rows:
            for column in ("chosen_ids", "rejected_ids"):
                if row[column][-1] != end:
                    row[column] = [*row[column], end]
        write_rows(target, rows)


def read_couples(folder: Path, name: str, number: int | None) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, answer and other answer of the first `number` pairs, in the order of the prompts."""
    couples: list[tuple[list[int], list[int], list[int]]] = []
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for row in read_rows(path):
            firsts, seconds = row["answers"][::2], row["answers"][1::2]
            couples += [(row["prompt"], first, second) for first, second in zip(firsts, seconds, strict=True)]
        if number is not None and len(couples) >= number:
            return couples[:number]
    return couples


def text_rewards(
    reward: Callable[..., list[float]],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[list[int], list[int]]],
) -> list[float]:
    """The reward of the text of each prompt and answer."""
    prompts = tokenizer.batch_decode([prompt for prompt, _ in rows], skip_special_tokens=True)
    whole = tokenizer.batch_decode([[*prompt, *answer] for prompt, answer in rows], skip_special_tokens=True)
    return reward(prompts, [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)])


def rows_of(
    couples: Sequence[tuple[list[int], list[int], list[int]]], rewards: np.ndarray, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Preference pairs, and labelled answers.

    Args:
        couples: Prompt, answer, other answer.
        rewards: Of shape (2, couples).
        seed: Seed of one random number for each couple, in their order, so that smaller sets begin larger ones.
    """
    # Bradley-Terry: the first answer is preferred with probability sigmoid(its reward minus the other's).
    first_wins = np.random.default_rng(seed).random(len(couples)) < 1 / (1 + np.exp(rewards[1] - rewards[0]))
    pairs, labels = [], []
    for (prompt, *answers), scores, first in zip(couples, rewards.T.tolist(), first_wins, strict=True):
        chosen = 0 if first else 1
        rejected = 1 - chosen
        pairs.append(
            {
                "chosen_ids": [*prompt, *answers[chosen]],
                "rejected_ids": [*prompt, *answers[rejected]],
                "chosen_reward": scores[chosen],
                "rejected_reward": scores[rejected],
            }
        )
        for answer, score in zip(answers, scores, strict=True):
            labels.append({"input_ids": [*prompt, *answer], "start": len(prompt), "reward": score})
    return pairs, labels


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
