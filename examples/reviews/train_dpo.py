"""The fine-tuned rival: TRL's DPO of the base model on the very pairs that the reward models learn from.

    python examples/reviews/train_dpo.py --model PATH_OR_ID --output_dir runs/reviews --betas 0.1 0.3 1

Each beta becomes the folder `policies/dpo-BETA`, an ordinary language model; together they are DPO's curve of reward
against KL. Small beta is far from the base: the optimum is base · exp(reward / beta).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from files import write
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from trl import DPOConfig, DPOTrainer


@dataclass
class Arguments:
    """What to train on which pairs, and how."""

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
    """Takes pairs of token ids as they are. TRL would tokenise texts anew, and end those that were cut."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def main(args: Arguments) -> None:
    """Trains a policy for each beta that has none yet."""
    data = str(Path(args.output_dir) / "data" / args.pairs / "train.jsonl")
    pairs = load_dataset("json", data_files=data, split="train").map(split_prompt, desc="Splitting prompts")
    for beta in args.betas:
        folder = Path(args.output_dir) / "policies" / f"{args.name}-{beta:g}"
        if not folder.exists():
            train(args, pairs, beta, folder)


def split_prompt(row: dict[str, Any]) -> dict[str, list[int]]:
    """Both answers without what they have in common, which is what DPO is told apart from the prompt."""
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    # Tokens that both answers begin with add the same to both log-ratios, so they may count as prompt. One token of
    # each answer is left, because the other one may be all of it.
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    return {"prompt_ids": chosen[:shared], "chosen_ids": chosen[shared:], "rejected_ids": rejected[shared:]}


def train(args: Arguments, pairs: Any, beta: float, folder: Path) -> None:
    """Trains one policy and stores it whole or not at all."""
    set_seed(args.seed)
    begun = time.perf_counter()
    draft = folder.with_name(f".{folder.name}.draft")
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
    lines = [
        f"{entry['step']}\t{entry['loss']}\t{entry.get('rewards/accuracies')}\t{entry.get('rewards/margins')}"
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    title = f"seconds\t{time.perf_counter() - begun:.0f}\nstep\tloss\taccuracy\tmargin\n"
    write(folder / "log.tsv", title + "\n".join(lines) + "\n")
    shutil.rmtree(draft, ignore_errors=True)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
