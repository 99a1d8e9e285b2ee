"""Answers of the base model to prompts of train and val: temperature 1, no truncation.

    python examples/reviews/sample_answers.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

They are written a few hundred prompts at a time. Every answer has random numbers of its own, so that an interrupted run
resumes with the same answers, in batches of any size. Token ids are kept, because decoding and tokenising again does
not always give the tokens that were sampled: a reward model would learn prefixes that guidance never meets. An answer
that reached `<|endoftext|>` keeps it; one that was cut has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from files import write_rows
from rich.progress import track
from splits import EVALUATION_PROMPTS, train_prompts, val_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from rgtg_logits.sampling import Sampler


@dataclass
class Arguments:
    """The model, the reviews, and the numbers of prompts and answers."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    seed: int = 0
    prompts: int = 16_000
    held_out_prompts: int = 1000
    first_held_out: int = EVALUATION_PROMPTS
    samples: int = 4
    new_tokens: int = 64
    prompts_per_file: int = 500
    batch_size: int = 512


def main(args: Arguments) -> None:
    """Writes the files that are missing, those of the smaller data sets first."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # Faster on a CPU than the default, for texts as short as these.
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", attn_implementation="eager").eval()
    sampler = Sampler(model, tokenizer, max_new_tokens=args.new_tokens)
    train = train_prompts(args.data, tokenizer, args.prompts, args.seed)
    val = val_prompts(args.data, tokenizer, args.first_held_out, args.held_out_prompts, args.seed)
    # Held-out prompts come before most of the train prompts, because every evaluation needs them.
    first = len(train) // 4
    folder = Path(args.output_dir) / "answers"
    parts = [*parts_of(train[:first], args, "train", 0), *parts_of(val, args, "held_out", 0)]
    parts += parts_of(train[first:], args, "train", first)
    for name, prompts in track(parts, description="Sampling answers"):
        if not (folder / name).exists():
            answers = sample(sampler, prompts, f"{args.seed}:{name}", args)
            write_rows(folder / name, [{"prompt": p, "answers": a} for p, a in zip(prompts, answers, strict=True)])


def parts_of(
    prompts: Sequence[list[int]], args: Arguments, split: str, start: int
) -> Iterator[tuple[str, Sequence[list[int]]]]:
    """Name and prompts of each file, which is named after the number of its first prompt."""
    for i in range(0, len(prompts), args.prompts_per_file):
        yield f"{split}-{start + i:05d}.jsonl", prompts[i : i + args.prompts_per_file]


def sample(sampler: Sampler, prompts: Sequence[list[int]], key: str, args: Arguments) -> list[list[list[int]]]:
    """Token ids of the answers, by prompt and sample."""
    answers: list[list[list[int]]] = []
    per_batch = max(1, args.batch_size // args.samples)
    for start in range(0, len(prompts), per_batch):
        batch = list(enumerate(prompts[start : start + per_batch], start))
        rows = [ids for _, ids in batch for _ in range(args.samples)]
        new = sampler.draw_tokens(rows, [f"{key}:{i}:{n}" for i, _ in batch for n in range(args.samples)])
        answers += [new[i : i + args.samples] for i in range(0, len(new), args.samples)]
    return answers


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
