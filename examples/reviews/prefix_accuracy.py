"""Prefix accuracy of reward models: how often the prefix of the preferred answer has the larger reward (claim a).

    python examples/reviews/prefix_accuracy.py --output_dir runs/reviews --reward_models partial_bt full_bt value

For each reward model, the share of held-out pairs whose chosen answer, cut at 10, 25, 50, 75 and 100 %, has the larger
reward; and the lead of the first one over each of the others, pair by pair. Standard errors are clustered by prompt,
because the pairs of a prompt are not independent. "gold" is the gold reward itself on the finished texts: labels are
random draws, so that no model can be expected to do better. Writes `prefix_accuracy.json` and `prefix_accuracy.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from files import read_rows, write
from rich.progress import track
from transformers import HfArgumentParser

from rgtg_logits import RewardModel
from rgtg_logits.prefix_accuracy import PERCENTS, PairRewards, pair_lengths, prefix_wins


@dataclass
class Arguments:
    """The reward models and the pairs."""

    output_dir: str = "runs/reviews"
    pairs: str = "gold-pairs-8000"
    reward_models: list[str] = field(default_factory=lambda: ["partial_bt", "full_bt"])
    name: str = "prefix_accuracy"
    prompt_tokens: int = 13
    batch_size: int = 128


def main(args: Arguments) -> None:
    """Measures and writes the table."""
    out = Path(args.output_dir)
    pairs = read_rows(out / "data" / args.pairs / "test.jsonl")
    prompts = np.unique([str(pair["chosen_ids"][: args.prompt_tokens]) for pair in pairs], return_inverse=True)[1]
    wins = {name: prefix_outcomes(out / "reward_models" / name, pairs, args.batch_size) for name in args.reward_models}
    first, *others = args.reward_models
    gold = np.array([[float(pair["chosen_reward"] > pair["rejected_reward"])] for pair in pairs])
    results: dict[str, Any] = {
        "pairs": len(pairs),
        "prompts": int(prompts.max()) + 1,
        "percents": list(PERCENTS),
        "accuracy": {name: mean_by_prompt(values, prompts) for name, values in wins.items()},
        "ahead": {f"{first} - {name}": mean_by_prompt(wins[first] - wins[name], prompts) for name in others},
        "gold": mean_by_prompt(gold, prompts),
    }
    write(out / f"{args.name}.json", json.dumps(results, indent=1) + "\n")
    write(out / f"{args.name}.md", table(results))
    print(table(results))


def prefix_outcomes(folder: Path, pairs: list[dict[str, Any]], batch_size: int) -> np.ndarray:
    """Share of wins (1, 0, or 0.5 for a tie) of the chosen answer, of shape (pairs, percentages)."""
    # The bfloat16 weights that are published, computed with in float32.
    reward_model = RewardModel.from_pretrained(folder, dtype=torch.bfloat16)
    reward_model.model.float()
    pad = reward_model.tokenizer.pad_token_id
    wins = []
    for start in track(range(0, len(pairs), batch_size), description=folder.name):
        batch = pairs[start : start + batch_size]
        texts = [torch.tensor(pair[key]) for key in ("chosen_ids", "rejected_ids") for pair in batch]
        input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
        chosen, rejected = reward_model.score_tokens(input_ids, mask).chunk(2)
        wins.append(prefix_wins(PairRewards(chosen, rejected, pair_lengths(input_ids, mask))))
    return torch.cat(wins).double().numpy()


def mean_by_prompt(values: np.ndarray, prompts: np.ndarray) -> dict[str, list[float]]:
    """Mean of each column, and its standard error clustered by prompt."""
    mean = values.mean(0)
    sums = np.zeros((prompts.max() + 1, values.shape[1]))
    np.add.at(sums, prompts, values - mean)
    return {"mean": mean.tolist(), "standard_error": (np.sqrt((sums**2).sum(0)) / len(values)).tolist()}


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [f"{results['pairs']} held-out pairs of {results['prompts']} prompts, ± standard error.", ""]
    lines += ["| | " + " | ".join(f"{p} %" for p in results["percents"]) + " |", "|---" * (len(PERCENTS) + 1) + "|"]
    rows = {**results["accuracy"], **results["ahead"]}
    for name, row in rows.items():
        cells = zip(row["mean"], row["standard_error"], strict=True)
        sign = "+" if name in results["ahead"] else ""
        lines.append(f"| {name} | " + " | ".join(f"{mean:{sign}.3f} ± {error:.3f}" for mean, error in cells) + " |")
    gold = results["gold"]
    lines += ["", f"The gold reward on finished answers: {gold['mean'][0]:.3f} ± {gold['standard_error'][0]:.3f}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
