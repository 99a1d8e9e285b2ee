"""A second judge, of another nature: the base model fine-tuned to tell positive from negative reviews.

    python examples/reviews/train_judge.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

It sees only the half of the star-rated reviews that the gold reward has not seen. Writes the folder `neural_judge`, a
sequence classifier for `--reward`/`load_reward` with the label "positive", and `neural_judge.json` with its accuracy on
held-out reviews, whole (as far as it reads) and at the length of the texts that are judged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from files import once
from reviews import load_reviews
from splits import halves
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

HELD_OUT_REVIEWS = 1000


@dataclass
class Arguments:
    """What to train, on how many reviews."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    seed: int = 0
    max_reviews: int = 10_000
    learning_rate: float = 2e-4
    longest: int = 256
    shortest: int = 40
    judged: int = 76
    bf16: bool = False
    attn_implementation: str | None = None


def main(args: Arguments) -> None:
    """Trains, measures and stores the judge, if it is not there."""
    folder = Path(args.output_dir) / "neural_judge"
    if folder.exists():
        return
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=2, id2label={0: "negative", 1: "positive"}, dtype=torch.float32,
        attn_implementation=args.attn_implementation,
    )  # fmt: skip
    reviews = halves(args.data, args.seed)[1]
    rows = list(training_rows(reviews.select(range(min(args.max_reviews, len(reviews)))), tokenizer, args))
    draft = folder.with_name(f".{folder.name}.draft")
    config = TrainingArguments(
        output_dir=str(draft), num_train_epochs=1, learning_rate=args.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=20, per_device_train_batch_size=32, per_device_eval_batch_size=64, seed=args.seed,
        report_to="none", save_strategy="no", logging_steps=20, bf16=args.bf16, use_cpu=not torch.cuda.is_available(),
        # Texts of about the same length together: nearly nothing is spent on padding.
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    val = load_reviews(args.data, "val").shuffle(seed=args.seed)
    held_out = val.select(range(max(0, len(val) - HELD_OUT_REVIEWS), len(val)))
    lengths = (args.longest, args.judged)
    once(folder.with_suffix(".json"), lambda: {f"accuracy_{n}": accuracy(trainer, held_out, n) for n in lengths})
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    (draft / "training_args.bin").unlink(missing_ok=True)
    draft.rename(folder)


def training_rows(reviews: Dataset, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> Iterator[dict]:
    """Each review as far as the judge reads, and twice a short text from it: its beginning, and one from anywhere.

    What is judged later is the beginning of a review, prompt and answer. Half of the texts begin with the end-of-text
    token, as the base model knows its texts, and half do not, because judges are given texts without it.
    """
    draw = random.Random(args.seed)
    for text, label in zip(reviews["text"], reviews["label"], strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            continue
        one, other = (draw.randint(args.shortest, args.shortest + 60) for _ in range(2))
        start = draw.randint(0, max(0, len(ids) - other))
        for part in (ids[: args.longest - 1], ids[:one], ids[start : start + other]):
            begin = [tokenizer.eos_token_id] if draw.random() < 0.5 else []
            yield {"input_ids": begin + part, "labels": int(label)}


def accuracy(trainer: Trainer, reviews: Dataset, longest: int) -> float:
    """Share of reviews, cut to `longest` tokens, whose label it gives."""
    tokenized = trainer.data_collator.tokenizer(list(reviews["text"]), truncation=True, max_length=longest)["input_ids"]
    rows = Dataset.from_dict({"input_ids": tokenized, "labels": [int(label) for label in reviews["label"]]})
    output = trainer.predict(rows)
    return float((output.predictions.argmax(-1) == output.label_ids).mean())


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
