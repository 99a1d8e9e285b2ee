"""Continues the training of the small base language model of this example on unlabelled reviews.

    python examples/reviews/train_base.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/base

An interrupted run resumes from its last checkpoint. Writes the model in bfloat16, and `validation.json` with the loss
in nats per token on held-out reviews before and after.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from files import write
from reviews import load_reviews
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class Arguments:
    """The model, the reviews, and the training arguments."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/base"
    tokens: int = 10_000_000
    window: int = 256
    batch_size: int = 32
    learning_rate: float = 1e-3
    validation_windows: int = 1000
    skip_windows: int = 0
    seed: int = 0


def windows(reviews: Dataset, tokenizer, window: int) -> Dataset:
    """Packs the reviews, an end-of-text token before each, into rows of `window` tokens."""

    def pack(batch: dict) -> dict:
        ids = tokenizer([tokenizer.eos_token + text for text in batch["text"]], add_special_tokens=False)["input_ids"]
        stream = list(chain.from_iterable(ids))
        rows = [stream[i : i + window] for i in range(0, len(stream) - window + 1, window)]
        return {"input_ids": rows, "labels": rows}

    return reviews.map(pack, batched=True, remove_columns=reviews.column_names, desc="tokenize")


def main(args: Arguments) -> None:
    """Trains, and measures the validation loss before and after."""
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    text = concatenate_datasets([load_reviews(args.data, s).select_columns("text") for s in ("train", "unsup")])
    rows = windows(text, tokenizer, args.window).shuffle(seed=args.seed)
    rows = rows.select(range(args.skip_windows, min(len(rows), args.skip_windows + args.tokens // args.window)))
    held_out = windows(load_reviews(args.data, "val").select_columns("text"), tokenizer, args.window)
    held_out = held_out.select(range(min(args.validation_windows, len(held_out))))
    config = TrainingArguments(
        output_dir=args.output_dir, num_train_epochs=1, seed=args.seed, report_to="none", logging_steps=20,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=50, weight_decay=0.1,
        adam_beta2=0.95, save_steps=100, save_total_limit=1, bf16=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model=model, args=config, train_dataset=rows, eval_dataset=held_out)
    report = Path(args.output_dir) / "validation.json"
    if report.exists():
        losses = json.loads(report.read_text())
    else:
        losses = {
            "before": trainer.evaluate()["eval_loss"],
            "unit": "nats per token",
            "tokens": len(rows) * args.window,
        }
        write(report, json.dumps(losses))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    losses["after"] = trainer.evaluate()["eval_loss"]
    write(report, json.dumps(losses, indent=2))
    trainer.model.to(torch.bfloat16).save_pretrained(Path(args.output_dir) / "final")
    tokenizer.save_pretrained(Path(args.output_dir) / "final")


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
