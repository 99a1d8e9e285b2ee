"""The same answers, labelled by a reward model that learnt from the pairs: all that is known is the pairs.

    python examples/reviews/relabel.py --output_dir runs/reviews --reward_model full_bt

Values that learn from the gold reward itself are told more than reward models that learn from draws between two
answers. This writes `data/full_bt-labels-8000`, with the reward that `full_bt` gives to each finished answer, so that
what is trained on it (`soft_value_td_from_pairs`, ...) has seen nothing but the pairs, like every other reward model.
For the second task: `--reward_model plain_full_bt --labels plain-labels-8000`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from files import write
from rich.progress import track
from transformers import HfArgumentParser

from rgtg_logits import RewardModel


@dataclass
class Arguments:
    """Which answers, labelled by what."""

    output_dir: str = "runs/reviews"
    reward_model: str = "full_bt"
    labels: str = "gold-labels-8000"
    batch_size: int = 256


def main(args: Arguments) -> None:
    """Writes the splits that are not there yet."""
    out = Path(args.output_dir)
    reward_model = RewardModel.from_pretrained(out / "reward_models" / args.reward_model, dtype=torch.float32)
    for split in ("train", "test"):
        target = out / "data" / f"{args.reward_model}-{args.labels.partition('-')[2]}" / f"{split}.jsonl"
        if target.exists():
            continue
        lines = (out / "data" / args.labels / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = relabelled([json.loads(line) for line in lines], reward_model, args.batch_size)
        write(target, "".join(json.dumps(row) + "\n" for row in rows))


def relabelled(rows: list[dict[str, Any]], reward_model: RewardModel, batch_size: int) -> list[dict[str, Any]]:
    """The rows with the reward that a model gives to each finished answer."""
    rewards: list[float] = []
    for start in track(range(0, len(rows), batch_size), description="labels"):
        texts = [torch.tensor(row["input_ids"]) for row in rows[start : start + batch_size]]
        input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
        rewards += reward_model.score_tokens(input_ids, mask).gather(1, lengths[:, None] - 1)[:, 0].tolist()
    return [{**row, "reward": reward} for row, reward in zip(rows, rewards, strict=True)]


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
