"""Answers of the base model itself to prompts of train and val: temperature 1, whole vocabulary.

    python examples/reviews/sample_answers.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

They are written a few hundred prompts at a time, each file drawn with a seed of its own, so that a run which was
stopped goes on with the very answers that it would have drawn. Token ids are kept, because decoding and tokenising
again would not always give the tokens that were sampled: a reward model would learn prefixes that guidance never meets.
An answer that reached `<|endoftext|>` keeps it, one that was cut has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from files import write
from rich.progress import track
from splits import EVALUATION_PROMPTS, train_prompts, val_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedModel, set_seed


@dataclass
class Arguments:
    """What to sample from, how much, and where it goes."""

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
    """Samples what is not there yet, the prompts of the smaller data sets first."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    train = train_prompts(args.data, tokenizer, args.prompts, args.seed)
    val = val_prompts(args.data, tokenizer, args.first_held_out, args.held_out_prompts, args.seed)
    # The held-out ones before most of the train prompts, because every evaluation wants them.
    first = len(train) // 4
    folder = Path(args.output_dir) / "answers"
    parts = [*parts_of(train[:first], args, "train", 0), *parts_of(val, args, "held_out", 0)]
    parts += parts_of(train[first:], args, "train", first)
    for name, seed, prompts in track(parts, description="Sampling answers"):
        if not (folder / name).exists():
            set_seed(seed)
            answers = sample(model, prompts, args)
            rows = [{"prompt": p, "answers": a} for p, a in zip(prompts, answers, strict=True)]
            write(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def parts_of(
    prompts: Sequence[list[int]], args: Arguments, split: str, start: int
) -> Iterator[tuple[str, int, Sequence[list[int]]]]:
    """File name, seed and prompts of each file; they are named by the number of their first prompt."""
    for i in range(0, len(prompts), args.prompts_per_file):
        seed = args.seed * 1_000_003 + start + i + (500_000 if split == "held_out" else 0)
        yield f"{split}-{start + i:05d}.jsonl", seed, prompts[i : i + args.prompts_per_file]


def sample(model: PreTrainedModel, prompts: Sequence[list[int]], args: Arguments) -> list[list[list[int]]]:
    """Per prompt, per sample, the token ids of the answer."""
    drawn: list[list[list[int]]] = []
    per_batch = max(1, args.batch_size // args.samples)
    for start in range(0, len(prompts), per_batch):
        batch = torch.tensor(prompts[start : start + per_batch])
        rows = model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=args.new_tokens,
            do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=args.samples,
        )  # fmt: skip
        new = [up_to_end(row, model.config.eos_token_id) for row in rows[:, batch.shape[1] :].tolist()]
        drawn += [new[i : i + args.samples] for i in range(0, len(new), args.samples)]
    return drawn


def up_to_end(ids: Sequence[int], end: int) -> list[int]:
    """Cuts an answer after its end-of-text token, if it has one: `generate` fills the rest with padding."""
    ids = list(ids)
    return ids[: ids.index(end) + 1] if end in ids else ids


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
