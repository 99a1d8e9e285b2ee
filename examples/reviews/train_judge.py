"""A second judge, of a different kind: the base model fine-tuned to classify reviews as positive or negative.

    python examples/reviews/train_judge.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/reviews

It is trained on the half of the star-rated reviews that the gold reward was not trained on. Writes the folder
`neural_judge`, a sequence classifier for `--reward`/`load_reward` with the label "positive", and `neural_judge.json`
with its accuracy on held-out reviews, cut at its longest input and at the length of the texts that are judged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from files import draft_of, once
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
    """The model, the reviews, and the training arguments."""

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
    """Trains, measures and stores the judge, if its folder is missing."""
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
    draft = draft_of(folder)
    config = TrainingArguments(
        output_dir=str(draft), num_train_epochs=1, learning_rate=args.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=20, per_device_train_batch_size=32, per_device_eval_batch_size=64, seed=args.seed,
        report_to="none", save_strategy="no", logging_steps=20, bf16=args.bf16, use_cpu=not torch.cuda.is_available(),
        # Batches of texts of about the same length need hardly any padding.
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
    """Three texts of each review: cut at the longest input, a short beginning, and a short passage from anywhere.

    The texts judged later, prompt and answer, are like the beginning of a review. Half of the texts begin with the
    end-of-text token, like the training texts of the base model; half do not, because judges receive texts without it.
    """
    draw = random.Random(args.seed)
    for text, label in zip(reviews["text"], reviews["label"], strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            continue
        beginning = draw.randint(args.shortest, args.shortest + 60)
        passage = draw.randint(args.shortest, args.shortest + 60)
        start = draw.randint(0, max(0, len(ids) - passage))
        for part in (ids[: args.longest - 1], ids[:beginning], ids[start : start + passage]):
            opening = [tokenizer.eos_token_id] if draw.random() < 0.5 else []
            yield {"input_ids": opening + part, "labels": int(label)}


def accuracy(trainer: Trainer, reviews: Dataset, longest: int) -> float:
    """Share of reviews, cut to `longest` tokens, whose label the judge predicts."""
    tokenized = trainer.data_collator.tokenizer(list(reviews["text"]), truncation=True, max_length=longest)["input_ids"]
    rows = Dataset.from_dict({"input_ids": tokenized, "labels": [int(label) for label in reviews["label"]]})
    output = trainer.predict(rows)
    return float((output.predictions.argmax(-1) == output.label_ids).mean())


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
