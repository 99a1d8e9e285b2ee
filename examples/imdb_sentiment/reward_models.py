"""Two reward models from the same pairs in the same order: Bradley-Terry on every prefix, or on whole texts only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.progress import track
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from rgtg_logits import RewardModel
from rgtg_logits.reward_model import RewardModelConfig
from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer
from rgtg_logits.train.data import PERCENTS, pair_lengths, prefix_wins

OBJECTIVES = ("partial_bt", "full_bt")


def train(
    objective: str,
    base: str,
    pairs: Sequence[dict[str, Any]],
    folder: Path,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Trains a reward model from the base model for one epoch and stores it in bfloat16, as it would be published."""
    set_seed(seed)  # Both objectives start from the same random head.
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    config = PartialRewardConfig(
        output_dir=str(folder / "trainer"), objective=objective, num_train_epochs=1, learning_rate=learning_rate,
        per_device_train_batch_size=batch_size, lr_scheduler_type="cosine", warmup_steps=10, max_length=None,
        seed=seed, report_to="none", save_strategy="no", logging_steps=10, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    # The trainer takes the sampled ids as they are; why not the texts, see pairs.py.
    ids = Dataset.from_list([{key: pair[key] for key in ("chosen_ids", "rejected_ids")} for pair in pairs])
    trainer = PartialRewardTrainer(model=model, args=config, train_dataset=ids, processing_class=tokenizer)
    result = trainer.train()
    trained = RewardModel(trainer.model.to(torch.bfloat16), tokenizer, config=RewardModelConfig(objective=objective))
    trained.save_pretrained(folder)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    return {
        "facts": trainer.card_facts(objective).to_dict(),
        "loss": result.training_loss,
        "seconds": result.metrics["train_runtime"],
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def prefix_outcomes(folder: Path, pairs: Sequence[dict[str, Any]], batch_size: int) -> np.ndarray:
    """Which prefix wins in each held-out pair (rows) at each percentage of the answers (columns)."""
    reward_model = RewardModel.from_pretrained(folder, dtype=torch.float32)
    pad = reward_model.tokenizer.pad_token_id
    wins = []
    for start in track(range(0, len(pairs), batch_size), description=f"Prefix accuracy, {folder.name}"):
        batch = pairs[start : start + batch_size]
        texts = [torch.tensor(pair[key]) for key in ("chosen_ids", "rejected_ids") for pair in batch]
        input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
        chosen, rejected = reward_model.score_tokens(input_ids, mask).chunk(2)
        wins.append(prefix_wins(chosen, rejected, pair_lengths(input_ids, mask)))
    return torch.cat(wins).double().numpy()


def prefix_accuracies(folders: dict[str, Path], pairs: Sequence[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Prefix accuracy of each model in `folders`, and by how much the first is ahead of the second.

    Standard errors take the pairs of one prompt together, because they share it. "gold" is the accuracy of the gold
    reward itself on finished texts: the labels are draws, so no reward model can be expected to do better.
    """
    prompts = np.unique([pair["prompt"] for pair in pairs], return_inverse=True)[1]
    outcomes = {name: prefix_outcomes(folder, pairs, batch_size) for name, folder in folders.items()}
    first, second = outcomes.values()
    gold = np.array([[pair["chosen_gold"] > pair["rejected_gold"]] for pair in pairs], dtype=float)
    return {
        "pairs": len(pairs),
        "prompts": int(prompts.max()) + 1,
        "percents": list(PERCENTS),
        **{name: _mean_by_prompt(values, prompts) for name, values in outcomes.items()},
        "difference": _mean_by_prompt(first - second, prompts),
        "gold": _mean_by_prompt(gold, prompts),
    }


def _mean_by_prompt(values: np.ndarray, prompts: np.ndarray) -> dict[str, list[float]]:
    """Mean of each column, and its standard error with prompts as the independent units."""
    mean = values.mean(0)
    sums = np.zeros((prompts.max() + 1, values.shape[1]))
    np.add.at(sums, prompts, values - mean)
    return {"mean": mean.tolist(), "standard_error": (np.sqrt((sums**2).sum(0)) / len(values)).tolist()}
