"""A training that is killed at a chosen point; in a module of its own, because another process imports it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer
from rgtg_logits.train.checkpoints import STAGING

WEIGHTS = "model.safetensors"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rgtg_logits.train"])


def make_trainer(
    base: str, folder: Path, rows: list[dict[str, str]], peft_config: LoraConfig | None = None, **changes: Any
) -> PartialRewardTrainer:
    options = {
        "max_steps": 5, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none",
        "lr_scheduler_type": "constant", "disable_tqdm": True, "gradient_checkpointing": False,
        "disable_dropout": False,
    }  # fmt: skip
    args = PartialRewardConfig(str(folder), **{**options, **changes})
    pairs = Dataset.from_list(rows)
    return PartialRewardTrainer(
        base, args, train_dataset=pairs, eval_dataset=pairs.select(range(4)), peft_config=peft_config
    )


def killed(base: str, folder: Path, rows: list[dict[str, str]], point: str) -> bool:
    """Whether a process that runs the command was killed by itself at a point.

    It is forked from a server that has imported everything and done nothing, because a process that has trained holds
    locks, and importing takes seconds.
    """
    process = SERVER.Process(target=run_until, args=(base, folder, rows, point))
    process.start()
    process.join(100)
    return process.exitcode == -signal.SIGKILL


def run_until(base: str, folder: Path, rows: list[dict[str, str]], point: str) -> None:
    """Runs the command in a process that is killed at the first event for which the point's condition holds."""
    torch.set_num_threads(1)
    when = POINTS[point][0](folder)

    def hook(event: str, args: tuple) -> None:
        if event != "os.kill" and when(event, args):
            os.kill(os.getpid(), signal.SIGKILL)

    # Events are what Python reports of itself: opened and renamed files, listed folders, and much else.
    sys.addaudithook(hook)
    trainer = make_trainer(base, folder, rows)
    trainer.add_callback(Footprints())
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()


class Footprints(TrainerCallback):
    """Leaves a file in the middle of each step, after the backward pass."""

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        Path(args.output_dir, f"step-{state.global_step + 1}").touch()


def renaming(name: str) -> Callable[[str, tuple], bool]:
    return lambda event, args: event == "os.rename" and Path(args[0]).name == name


def existing(file: str) -> Callable[[Path], Callable[[str, tuple], bool]]:
    return lambda folder: lambda *_: os.access(folder / file, os.F_OK)


POINTS = {
    "the first step": (existing("step-1"), None),
    "a later step": (existing("step-4"), "checkpoint-2"),
    "the first checkpoint": (existing(f"{STAGING}checkpoint-2/checkpoint-2/{WEIGHTS}"), None),
    "the weights of a checkpoint": (existing(f"{STAGING}checkpoint-4/checkpoint-4/{WEIGHTS}"), "checkpoint-2"),
    "the optimizer of a checkpoint": (existing(f"{STAGING}checkpoint-4/checkpoint-4/optimizer.pt"), "checkpoint-2"),
    "the end of a checkpoint": (lambda _: renaming("checkpoint-4"), "checkpoint-2"),
    "the last checkpoint": (existing(f"{STAGING}checkpoint-5/checkpoint-5/trainer_state.json"), "checkpoint-4"),
    "the final save": (existing(f"{STAGING}model/{WEIGHTS}"), "checkpoint-5"),
    "the moves of the final save": (lambda _: renaming(WEIGHTS), "checkpoint-5"),
    "the last move of the final save": (lambda _: renaming("config.json"), "checkpoint-5"),
}  # fmt: skip
