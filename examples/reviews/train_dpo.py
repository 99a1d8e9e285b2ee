"""Fine-tuning to compare with: TRL's DPO of the base model, on the same pairs as the reward models.

    python examples/reviews/train_dpo.py --model PATH_OR_ID --output_dir runs/reviews --betas 0.1 0.3 1

Each beta gives a folder `policies/dpo-BETA`, an ordinary language model; together they are the curve of reward against
KL of DPO. A small beta leads far from the base model: the optimum is base · exp(reward / beta).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from files import draft_of, write
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from trl import DPOConfig, DPOTrainer


@dataclass
class Arguments:
    """The model, the pairs, and the training arguments."""

    model: str
    output_dir: str = "runs/reviews"
    pairs: str = "gold-pairs-8000"
    betas: list[float] = field(default_factory=lambda: [0.3, 1.0, 0.1, 3.0])
    name: str = "dpo"
    seed: int = 0
    learning_rate: float = 1e-4
    epochs: float = 1
    batch_size: int = 32
    bf16: bool = False
    attn_implementation: str | None = None


class TokenDPOTrainer(DPOTrainer):
    """Takes pairs of token ids as they are; TRL would tokenise texts again, and end even those that were cut."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def main(args: Arguments) -> None:
    """Trains a policy for each beta whose folder is missing."""
    data = str(Path(args.output_dir) / "data" / args.pairs / "train.jsonl")
    pairs = load_dataset("json", data_files=data, split="train").map(split_prompt, desc="Splitting prompts")
    for beta in args.betas:
        folder = Path(args.output_dir) / "policies" / f"{args.name}-{beta:g}"
        if not folder.exists():
            train(args, pairs, beta, folder)


def split_prompt(row: dict[str, Any]) -> dict[str, list[int]]:
    """Splits both texts into the tokens that they begin with in common, as the prompt, and two answers."""
    chosen = row["chosen_ids"]
    rejected = row["rejected_ids"]
    # Tokens that both answers begin with add the same to both log-ratios, so they may count as prompt. Each answer
    # keeps at least one token, because an answer may be the beginning of the other one.
    longest = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < longest and chosen[shared] == rejected[shared]:
        shared += 1
    return {"prompt_ids": chosen[:shared], "chosen_ids": chosen[shared:], "rejected_ids": rejected[shared:]}


def train(args: Arguments, pairs: Any, beta: float, folder: Path) -> None:
    """Trains one policy and stores it whole or not at all."""
    set_seed(args.seed)
    started = time.perf_counter()
    draft = draft_of(folder)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attn_implementation
    )
    config = DPOConfig(
        output_dir=str(draft), beta=beta, learning_rate=args.learning_rate, num_train_epochs=args.epochs,
        lr_scheduler_type="cosine", warmup_steps=10, per_device_train_batch_size=args.batch_size, seed=args.seed,
        bf16=args.bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_steps=10, precompute_ref_log_probs=True, precompute_ref_batch_size=64,
        max_length=None,
    )  # fmt: skip
    trainer = TokenDPOTrainer(model=model, args=config, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    trainer.model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    (draft / "training_args.bin").unlink(missing_ok=True)
    draft.rename(folder)
    lines = [("seconds", f"{time.perf_counter() - started:.0f}"), ("step", "loss", "accuracy", "margin")]
    for entry in trainer.state.log_history:
        if "loss" in entry:
            columns = ("step", "loss", "rewards/accuracies", "rewards/margins")
            lines.append(tuple(str(entry.get(column)) for column in columns))
    write(folder / "log.tsv", "".join("\t".join(line) + "\n" for line in lines))
    shutil.rmtree(draft, ignore_errors=True)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
