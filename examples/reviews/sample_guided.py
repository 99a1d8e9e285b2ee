"""Answers of the guided base model, labelled by the reward model trained on the pairs: texts that guidance leads to.

    python examples/reviews/sample_guided.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/reviews \
        --guide soft_value_td_from_pairs_vocabulary --name guided --add full_bt-labels-8000

Strong guidance leads to texts that the base model hardly ever writes, and the rewards of prefixes unlike those of the
training data are guesses. Here prompts of train are answered under guidance at two strengths. `data/NAME-answers` holds
these answers with the reward of each by `full_bt`, and `data/NAME-labels` holds them after the data sets in `--add`. As
in sample_answers.py token ids are kept; `rgtg pairs --guide` does the same for texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from files import once_rows, read_rows, write_rows
from relabel import relabelled
from rich.progress import track
from splits import train_prompts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.sampling import Sampler
from rgtg_logits.scorers import load_scorer


@dataclass
class Arguments:
    """The base model, the guide, its strengths, and the prompts."""

    model: str
    guide: str
    name: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    add: list[str] = field(default_factory=list)
    betas: list[float] = field(default_factory=lambda: [6.0, 12.0])
    first: int = 4000
    prompts: int = 2000
    candidates: int = 100
    new_tokens: int = 64
    batch_size: int = 250
    reward_model: str = "full_bt"


def main(args: Arguments) -> None:
    """Writes the data set, if it is missing."""
    data = Path(args.output_dir) / "data"
    if (data / f"{args.name}-labels" / "train.jsonl").exists():
        return
    guided = once_rows(
        data / f"{args.name}-answers" / "train.jsonl",
        lambda: [row for beta in args.betas for row in answers(args, beta)],
    )
    added = [row for name in args.add for row in read_rows(data / name / "train.jsonl")]
    held_out = read_rows(data / f"{args.reward_model}-labels-8000" / "test.jsonl")
    write_rows(data / f"{args.name}-labels" / "test.jsonl", held_out)
    write_rows(data / f"{args.name}-labels" / "train.jsonl", [*added, *guided])


def answers(args: Arguments, beta: float) -> list[dict[str, Any]]:
    """One answer to each prompt, with its reward."""
    models = Path(args.output_dir) / "reward_models"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", attn_implementation="eager").eval()
    scorer = load_scorer(str(models / args.guide), tokenizer, dtype="bfloat16", device="cpu")

    def guide(mask: Tensor) -> PartialRewardLogitsProcessor:
        return PartialRewardLogitsProcessor(
            scorer, beta=beta, top_k=args.candidates, rest="keep", tokenizer=tokenizer, attention_mask=mask
        )

    sampler = Sampler(model, tokenizer, max_new_tokens=args.new_tokens, guide=guide)
    prompts = train_prompts(args.data, tokenizer, args.first + args.prompts, 0)[args.first :]
    rows: list[dict[str, Any]] = []
    for start in track(range(0, len(prompts), args.batch_size), description=f"Guiding, beta {beta:g}"):
        batch = prompts[start : start + args.batch_size]
        keys = [f"guided:{beta}:{args.first + start + i}" for i in range(len(batch))]
        for prompt, new in zip(batch, sampler.draw_tokens(batch, keys), strict=True):
            rows.append({"input_ids": [*prompt, *new], "start": len(prompt)})
    judge = RewardModel.from_pretrained(models / args.reward_model, dtype=torch.float32)
    return relabelled(rows, judge, args.batch_size)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
