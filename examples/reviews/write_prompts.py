"""Writes the prompts to tune strengths on (`prompts/tune.jsonl`, of train) and to report on (`prompts/val.jsonl`).

    python examples/reviews/write_prompts.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/reviews

Those to tune on come from behind the prompts that training draws from, so that no reward model has seen them either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from files import write
from splits import EVALUATION_PROMPTS, train_prompts, val_prompts
from transformers import AutoTokenizer, HfArgumentParser

FIRST = 18_500
"""How many train prompts come before those to tune on."""


@dataclass
class Arguments:
    """Whose prompts, and how many."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    tune: int = 150
    val: int = EVALUATION_PROMPTS
    first: int = FIRST
    seed: int = 0


def main(args: Arguments) -> None:
    """Writes both files."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    found = {
        "tune": train_prompts(args.data, tokenizer, args.first + args.tune, args.seed)[args.first :],
        "val": val_prompts(args.data, tokenizer, 0, args.val, args.seed),
    }
    for name, prompts in found.items():
        texts = [tokenizer.decode(ids) for ids in prompts]
        if any(tokenizer(text)["input_ids"] != ids for text, ids in zip(texts, prompts, strict=True)):
            raise ValueError(f"Expected texts of {name} that are made of the prompts' tokens again; leave some out.")
        rows = [json.dumps({"prompt": text}) + "\n" for text in texts]
        write(Path(args.output_dir) / "prompts" / f"{name}.jsonl", "".join(rows))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
