"""What every way of generating is measured on: the models, and the texts that they continue."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from typing_extensions import override

from rgtg_logits.benchmark.report import BenchmarkSettings
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.testing import tiny_tokenizer

MOST_CHARACTERS = 2_000_000
"""So much of a text is used, because tokenising more takes longer than measuring."""
BASE_TOKENS, OTHER_TOKENS = 8192, 6144
"""Sizes of the tokenizers made for models that have none: the base model's, and one that differs from it."""


@dataclass(frozen=True)
class BenchmarkModels:
    """The models of all ways; what no way needs is None.

    Attributes:
        base: The base model.
        reward_model: A sequence classifier, which all ways with one reward model share, so that one floor is theirs.
        second: A copy of it, in memory of its own.
        policy: A language model whose next-token logits are read as rewards: a copy of the base model.
        reference: Another copy.
        tokenizer: The base model's tokenizer.
        other: `reward_model` with a tokenizer that differs from the base model's.
    """

    base: PreTrainedModel
    reward_model: RewardModel
    second: RewardModel | None = None
    policy: PreTrainedModel | None = None
    reference: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    other: RewardModel | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids that both models read; base models may have more, as padding."""
        return min(self.base.config.get_text_config().vocab_size, self.reward_model.vocab_size)


def load_models(settings: BenchmarkSettings, text: str | None) -> BenchmarkModels:
    """Loads the models named, makes llama-style ones with random weights otherwise, and copies what the ways need.

    Args:
        settings: What to measure.
        text: What tokenizers are trained on where a model has none.

    Raises:
        CheckpointError: If the reward model cannot be loaded.
        InvalidArgumentError: If the reward model has no scalar head.
    """
    set_seed(settings.seed)
    base = _base(settings)
    reward_model = _reward_model(settings, base)
    if reward_model.kind != "causal":
        raise InvalidArgumentError(
            f"Expected a reward model with a scalar head, but {settings.reward_model!r} is of kind "
            f"{reward_model.kind!r}. Leave it out: models of other kinds are made in the base model's shape."
        )
    arms = set(settings.arms)
    tokenizer = other = None
    if text is not None:
        # Two halves, because two tokenizers trained on one text agree on nearly everything.
        halves = text[: len(text) // 2].splitlines(), text[len(text) // 2 :].splitlines()
        tokenizer = (
            AutoTokenizer.from_pretrained(settings.base, trust_remote_code=False)
            if settings.base
            else tiny_tokenizer(halves[0], vocab_size=min(BASE_TOKENS, base.config.vocab_size))
        )
        own = tiny_tokenizer(halves[1], vocab_size=min(OTHER_TOKENS, reward_model.vocab_size), kind="llama3")
        other = RewardModel(reward_model.model, own)
    return BenchmarkModels(
        base,
        reward_model,
        second=RewardModel(copy.deepcopy(reward_model.model)) if "weighted" in arms else None,
        policy=copy.deepcopy(base) if arms & {"vocabulary", "log_ratio", "log_ratio_pair"} else None,
        reference=copy.deepcopy(base) if "log_ratio_pair" in arms else None,
        tokenizer=tokenizer,
        other=other,
    )


def _base(settings: BenchmarkSettings) -> PreTrainedModel:
    dtype = getattr(torch, settings.dtype)
    if settings.base is None:
        model = LlamaForCausalLM(_llama(settings)).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            settings.base, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    return model.to(settings.device).eval()


def _reward_model(settings: BenchmarkSettings, base: PreTrainedModel) -> RewardModel:
    dtype = getattr(torch, settings.dtype)
    if settings.reward_model is not None:
        reward_model = RewardModel.from_pretrained(settings.reward_model, dtype=dtype)
        reward_model.model.to(settings.device)
        return reward_model
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    return RewardModel(AutoModelForSequenceClassification.from_config(config).to(settings.device, dtype))


def _llama(settings: BenchmarkSettings) -> LlamaConfig:
    heads = max(1, settings.width // 64)
    return LlamaConfig(
        vocab_size=32_000, hidden_size=settings.width, intermediate_size=settings.width * 8 // 3,
        num_hidden_layers=settings.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip


def read_text(path: str) -> str:
    """The text of a file: all of it, or the column "text" of .jsonl and .json; at most `MOST_CHARACTERS`.

    Raises:
        InvalidArgumentError: If there is no such file, or no such column.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidArgumentError(f"Expected a file of text, but there is no file {path!r}. Give the path of one.")
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix not in (".jsonl", ".json"):
            return content[:MOST_CHARACTERS]
        # Not splitlines(), because JSON strings may hold other line separators.
        lines = [line for line in content.split("\n") if line.strip()]
        rows = json.loads(content) if file.suffix == ".json" else [json.loads(line) for line in lines]
        return "\n\n".join(row["text"] for row in rows)[:MOST_CHARACTERS]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f'Expected UTF-8 text, or rows with a column "text" in .jsonl and .json, but {path!r} holds something else '
            f"({type(error).__name__}: {error}). Convert it."
        ) from error


@dataclass(frozen=True)
class Texts:
    """What is continued.

    Attributes:
        vocab_size: Random tokens are drawn below this.
        seed: Seed of the draws.
        ids: Tokens of real text; None for random ones.
        follow: Whether to make the base model write the text: see `Hint` and `Follow`.
    """

    vocab_size: int
    seed: int
    ids: Int[Tensor, " tokens"] | None = None
    follow: bool = False

    def rows(self, batch: int, length: int) -> Int[Tensor, "batch length"]:
        """Rows of tokens: random, or from different places of the text.

        Raises:
            InvalidArgumentError: If the text is too short.
        """
        if self.ids is None:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randint(3, self.vocab_size, (batch, length), generator=generator)
        places = len(self.ids) - length + 1
        if places < batch:
            raise InvalidArgumentError(
                f"Expected a text of {length + batch - 1} tokens or more for {batch} different rows of {length}, but "
                f"it has {len(self.ids)}. Give a longer text, or fewer or shorter prompts."
            )
        return torch.stack([self.ids[start : start + length] for start in range(0, places, places // batch)][:batch])


def make_texts(settings: BenchmarkSettings, models: BenchmarkModels, text: str | None) -> Texts:
    """Random tokens, or the tokens of a text.

    Raises:
        InvalidArgumentError: If the text is too short for the longest prompts and largest batch.
    """
    if text is None or models.tokenizer is None:
        return Texts(models.vocab_size, settings.seed)
    ids = models.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    texts = Texts(models.vocab_size, settings.seed, torch.tensor(ids, dtype=torch.long), follow=settings.base is None)
    texts.rows(max(settings.batch_sizes), max(settings.prompt_lengths) + settings.new_tokens)
    return texts


class Hint(LogitsProcessor):
    """In front of all others: makes the scores of a model with random weights look like those of a language model.

    Tokens score by how frequent they are in the text, with the model's own scores as noise, and the token that really
    comes next as high as the best, so that it is among the candidates.
    """

    def __init__(self, texts: Texts, rows: Int[Tensor, "batch length"], vocab_size: int) -> None:
        self.rows = rows
        self.log_frequency = torch.bincount(cast(Tensor, texts.ids), minlength=vocab_size).to(rows.device).float().log()

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        likely = scores + self.log_frequency
        true = self.rows[:, input_ids.shape[1], None]
        return likely.scatter(-1, true, likely.amax(-1, keepdim=True))


class Follow(LogitsProcessor):
    """Behind all others: leaves the token that really comes next as the only one."""

    def __init__(self, rows: Int[Tensor, "batch length"]) -> None:
        self.rows = rows

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        return torch.full_like(scores, float("-inf")).scatter(-1, self.rows[:, input_ids.shape[1], None], 0.0)
