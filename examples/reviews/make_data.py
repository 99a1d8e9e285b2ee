"""The gold reward, a judge that never labels anything, and data for every objective from the same answers.

    python examples/reviews/make_data.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

Writes `gold.json` and `judge.json` (sentiment of disjoint halves of the star-rated train reviews), and from the answers
of sample_answers.py, for each reward and number of pairs, two data sets that `rgtg train` takes as they are, as folders
with `train.jsonl` and `test.jsonl`:

- `data/gold-pairs-8000`: answers 1 and 2 of a prompt, 3 and 4, ...; which of them is chosen is a Bradley-Terry draw;
- `data/gold-labels-8000`: each of the same answers with its reward.

Smaller sets are the first rows of larger ones. Both hold the token ids that were sampled (see sample_answers.py), and
no end of text where an answer was cut: TRL puts one behind texts, and a reward model would take it for a matter of
counting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judges
import numpy as np
from files import once, write
from reviews import load_reviews
from sentiment import SentimentModel
from splits import halves
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

REWARDS: dict[str, Callable[..., list[float]]] = {"gold": judges.gold, "plain": judges.plain}
HELD_OUT_REVIEWS = 2000


@dataclass
class Arguments:
    """Where reviews, tokenizer and answers are, and what to make of them."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    seed: int = 0
    pairs: list[int] = field(default_factory=lambda: [500, 2000, 8000, 32_000])
    plain_pairs: list[int] = field(default_factory=lambda: [8000])


def main(args: Arguments) -> None:
    """Makes what is not there yet, as far as there are answers for it."""
    out = Path(args.output_dir)
    os.environ["RGTG_REVIEWS"] = str(out)
    for name, part in zip(("gold", "judge"), range(2), strict=True):
        once(out / f"{name}.json", lambda part=part: learn_sentiment(args, part))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for reward, sizes in (("gold", args.pairs), ("plain", args.plain_pairs)):
        for size in sizes:
            make_sets(out, tokenizer, reward, size, args.seed)
    close_pairs(out / "data", "gold-pairs-8000", tokenizer.eos_token_id)


def learn_sentiment(args: Arguments, part: int) -> dict[str, Any]:
    """A sentiment model of one half of the train reviews, and its accuracy on reviews of val."""
    model = SentimentModel.fit(halves(args.data, args.seed)[part])
    val = load_reviews(args.data, "val").shuffle(seed=args.seed)
    held_out = val.select(range(max(0, len(val) - HELD_OUT_REVIEWS), len(val)))
    return {"accuracy": model.accuracy(held_out), "reviews": len(held_out), **model.to_dict()}


def make_sets(out: Path, tokenizer: PreTrainedTokenizerBase, reward: str, size: int, seed: int) -> None:
    """Writes the pairs and the labelled answers of one reward and one size, once there are answers enough."""
    folders = {kind: out / "data" / f"{reward}-{kind}-{size}" for kind in ("pairs", "labels")}
    if all((folder / f"{split}.jsonl").exists() for folder in folders.values() for split in ("train", "test")):
        return
    for split, name, number in (("train", "train", size), ("test", "held_out", None)):
        couples = read_couples(out / "answers", name, number)
        if number is not None and len(couples) < number:
            print(
                f"{len(couples)} of {number} pairs are sampled: come back for {', '.join(map(str, folders.values()))}"
            )
            return
        rewards = [judged(REWARDS[reward], tokenizer, [(p, pair[side]) for p, *pair in couples]) for side in (0, 1)]
        pairs, labels = rows_of(couples, np.array(rewards), seed + (split == "test"))
        for kind, rows in (("pairs", pairs), ("labels", labels)):
            write(folders[kind] / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def close_pairs(data: Path, name: str, end: int) -> None:
    """Writes the same pairs with the end-of-text token behind every answer, cut or not, as TRL puts it behind texts."""
    for split in ("train", "test"):
        source, target = (data / folder / f"{split}.jsonl" for folder in (name, name.replace("gold", "closed")))
        if target.exists() or not source.exists():
            continue
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            for key in ("chosen_ids", "rejected_ids"):
                row[key] = row[key] if row[key][-1] == end else [*row[key], end]
        write(target, "".join(json.dumps(row) + "\n" for row in rows))


def read_couples(folder: Path, name: str, number: int | None) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, answer and other answer of the first `number` pairs, in the order of the prompts."""
    couples: list[tuple[list[int], list[int], list[int]]] = []
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers = row["answers"]
            couples += [(row["prompt"], a, b) for a, b in zip(answers[::2], answers[1::2], strict=True)]
        if number is not None and len(couples) >= number:
            return couples[:number]
    return couples


def judged(
    reward: Callable[..., list[float]],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[list[int], list[int]]],
) -> list[float]:
    """The reward of each prompt and answer."""
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
        seed: Of the draws: one number for each couple in their order, so that smaller sets are the first of larger.
    """
    first_wins = np.random.default_rng(seed).random(len(couples)) < 1 / (1 + np.exp(rewards[1] - rewards[0]))
    pairs, labels = [], []
    for (prompt, *both), scores, first in zip(couples, rewards.T.tolist(), first_wins, strict=True):
        win, lose = (0, 1) if first else (1, 0)
        pairs.append(
            {
                "chosen_ids": [*prompt, *both[win]],
                "rejected_ids": [*prompt, *both[lose]],
                "chosen_reward": scores[win],
                "rejected_reward": scores[lose],
            }
        )
        labels += [
            {"input_ids": [*prompt, *answer], "start": len(prompt), "reward": score}
            for answer, score in zip(both, scores, strict=True)
        ]
    return pairs, labels


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
