"""The same answers, labelled by a reward model that was trained on the pairs, as if nothing but the pairs were known.

    python examples/reviews/relabel.py --output_dir runs/reviews --reward_model full_bt

Value models trained on the gold reward itself receive more information than reward models trained on preferences
between two answers. This writes `data/full_bt-labels-8000`, with the reward of each finished answer by `full_bt`, so
that models trained on it (`soft_value_td_from_pairs`, ...) depend on the pairs alone, like every other reward model.
For the second task: `--reward_model plain_full_bt --labels plain-labels-8000`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from files import read_rows, write_rows
from rich.progress import track
from transformers import HfArgumentParser

from rgtg_logits import RewardModel


@dataclass
class Arguments:
    """The answers, and the reward model that labels them."""

    output_dir: str = "runs/reviews"
    reward_model: str = "full_bt"
    labels: str = "gold-labels-8000"
    batch_size: int = 256


def main(args: Arguments) -> None:
    """Writes the splits that are missing."""
    out = Path(args.output_dir)
    reward_model = RewardModel.from_pretrained(out / "reward_models" / args.reward_model, dtype=torch.float32)
    for split in ("train", "test"):
        target = out / "data" / f"{args.reward_model}-{args.labels.partition('-')[2]}" / f"{split}.jsonl"
        if target.exists():
            continue
        rows = read_rows(out / "data" / args.labels / f"{split}.jsonl")
        write_rows(target, relabelled(rows, reward_model, args.batch_size))


def relabelled(rows: list[dict[str, Any]], reward_model: RewardModel, batch_size: int) -> list[dict[str, Any]]:
    """The rows with the reward that a model gives to each finished answer."""
    rewards: list[float] = []
    for start in track(range(0, len(rows), batch_size), description="labels"):
        rewards += finished_rewards(reward_model, [row["input_ids"] for row in rows[start : start + batch_size]])
    return [{**row, "reward": reward} for row, reward in zip(rows, rewards, strict=True)]


def finished_rewards(reward_model: RewardModel, token_ids: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each text of token ids, which are kept as they were sampled instead of tokenised again."""
    texts = [torch.tensor(ids) for ids in token_ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
    return reward_model.score_tokens(input_ids, mask).gather(1, lengths[:, None] - 1)[:, 0].tolist()


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
