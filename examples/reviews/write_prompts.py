"""Writes the prompts to tune strengths on (`prompts/tune.jsonl`, of train) and to report on (`prompts/val.jsonl`).

    python examples/reviews/write_prompts.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/reviews

Tuning prompts come after those of the training data, so that no reward model has seen them either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from files import write_rows
from splits import EVALUATION_PROMPTS, train_prompts, val_prompts
from transformers import AutoTokenizer, HfArgumentParser

FIRST = 18_500
"""Number of train prompts before those to tune on."""


@dataclass
class Arguments:
    """The tokenizer, the reviews, and the numbers of prompts."""

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
    prompts_of = {
        "tune": train_prompts(args.data, tokenizer, args.first + args.tune, args.seed)[args.first :],
        "val": val_prompts(args.data, tokenizer, 0, args.val, args.seed),
    }
    for name, prompts in prompts_of.items():
        texts = [tokenizer.decode(ids) for ids in prompts]
        if any(tokenizer(text)["input_ids"] != ids for text, ids in zip(texts, prompts, strict=True)):
            raise ValueError(
                f"Expected prompts of {name} whose texts have the same tokens again, but got others. Leave some out."
            )
        write_rows(Path(args.output_dir) / "prompts" / f"{name}.jsonl", [{"prompt": text} for text in texts])


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
