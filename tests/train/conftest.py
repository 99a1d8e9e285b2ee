from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rgtg_logits.testing import tiny_base_model, tiny_tokenizer
from rgtg_logits.train import PartialRewardConfig

GOOD = ["good", "a good film", "the plot was good"]
BAD = ["bad", "the end was bad", "a bad cast , bad music and a bad end"]


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer) -> str:
    """A folder with a tiny language model: an ordinary causal-LM checkpoint without a reward head."""
    folder = tmp_path_factory.mktemp("base") / "tiny-lm"
    tiny_base_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    return make_pairs(12, seed=0)


@pytest.fixture
def make_config(tmp_path: Path):
    def build(**changes) -> PartialRewardConfig:
        options = {
            "output_dir": str(tmp_path / "reward-model"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 5,
            "learning_rate": 1e-3,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "gradient_checkpointing": False,
        }
        return PartialRewardConfig(**{**options, **changes})

    return build


def make_pairs(count: int, *, seed: int) -> Dataset:
    draw = random.Random(seed)
    rows = [
        {
            "prompt": "the film was",
            "chosen": f" {draw.choice(GOOD)} {index}",
            "rejected": f" {draw.choice(BAD)} {index}",
        }
        for index in range(count)
    ]
    return Dataset.from_list(rows)


def make_answers(count: int, *, seed: int) -> Dataset:
    """Answers with a reward each: 1 for good ones, -1 for bad ones."""
    draw = random.Random(seed)
    kinds = [draw.choice([(GOOD, 1.0), (BAD, -1.0)]) for _ in range(count)]
    rows = [
        {"prompt": "the film was", "completion": f" {draw.choice(texts)} {index}", "reward": reward}
        for index, (texts, reward) in enumerate(kinds)
    ]
    return Dataset.from_list(rows)


def random_batch(pairs: int, vocab_size: int, generator: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    """Texts of unequal lengths with a common prompt of 0 to 4 tokens, each closed by token 1 (end of text)."""

    def draw(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(2, vocab_size, (length,), generator=generator).tolist()

    prompts = [draw(0, 4) for _ in range(pairs)]
    return [[*prompt, *draw(1, 7), 1] for prompt in prompts], [[*prompt, *draw(0, 7), 1] for prompt in prompts]
