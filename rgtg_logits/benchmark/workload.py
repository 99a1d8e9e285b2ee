"""The workload of every method of generating: the models, and the tokens that they continue."""

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
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from typing_extensions import override

from rgtg_logits.benchmark.settings import BenchmarkSettings
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.testing import tiny_tokenizer

MAX_CHARACTERS = 2_000_000
"""The most characters of a text that are used, because to tokenise more takes longer than to measure."""
BASE_TOKENIZER_SIZE = 8192
"""Tokens of the tokenizer that is trained for a base model of random weights."""
RETOKENIZED_SIZE = 6144
"""Tokens of the tokenizer, another one, that is trained for the reward model of the method "retokenizing"."""


@dataclass(frozen=True)
class BenchmarkModels:
    """The models of all methods; a model that no method needs is None.

    Attributes:
        base: The base model.
        reward_model: A sequence classifier, shared by all methods with one reward model, so that they have one floor.
        second: A copy of it, in memory of its own.
        policy: A language model whose next-token logits are read as rewards: a copy of the base model.
        reference: Another copy.
        tokenizer: The base model's tokenizer.
        retokenized: `reward_model` with a tokenizer that differs from the base model's.
    """

    base: PreTrainedModel
    reward_model: RewardModel
    second: RewardModel | None = None
    policy: PreTrainedModel | None = None
    reference: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    retokenized: RewardModel | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids that both models read; base models may have more, as padding."""
        return min(self.base.config.get_text_config().vocab_size, self.reward_model.vocab_size)


def load_models(settings: BenchmarkSettings, text: str | None) -> BenchmarkModels:
    """Loads the models named, or makes llama-style ones of random weights, and copies what the methods need.

    Args:
        settings: The models and methods.
        text: The text that tokenizers are trained on where a model has none.

    Raises:
        CheckpointError: If the reward model cannot be loaded.
        InvalidArgumentError: If the reward model has no scalar head.
    """
    set_seed(settings.seed)
    base = _base(settings)
    reward_model = _reward_model(settings, base.config)
    methods = set(settings.methods)
    tokenizer = None
    retokenized = None
    if text is not None:
        # Two halves, because two tokenizers trained on one text agree on nearly everything.
        middle = len(text) // 2
        tokenizer = _base_tokenizer(settings, base, text[:middle])
        vocab_size = min(RETOKENIZED_SIZE, reward_model.vocab_size)
        other_tokenizer = tiny_tokenizer(text[middle:].splitlines(), vocab_size=vocab_size, kind="llama3")
        retokenized = RewardModel(reward_model.model, other_tokenizer)
    return BenchmarkModels(
        base,
        reward_model,
        second=RewardModel(copy.deepcopy(reward_model.model)) if "weighted" in methods else None,
        policy=copy.deepcopy(base) if methods & {"vocabulary", "log_ratio", "log_ratio_pair"} else None,
        reference=copy.deepcopy(base) if "log_ratio_pair" in methods else None,
        tokenizer=tokenizer,
        retokenized=retokenized,
    )


def _base_tokenizer(settings: BenchmarkSettings, base: PreTrainedModel, text: str) -> PreTrainedTokenizerBase:
    if settings.base is not None:
        return AutoTokenizer.from_pretrained(settings.base, trust_remote_code=False)
    return tiny_tokenizer(text.splitlines(), vocab_size=min(BASE_TOKENIZER_SIZE, base.config.vocab_size))


def _base(settings: BenchmarkSettings) -> PreTrainedModel:
    dtype = getattr(torch, settings.dtype)
    if settings.base is None:
        model = LlamaForCausalLM(_llama(settings)).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            settings.base, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    return model.to(settings.device).eval()


def load_reward_model(settings: BenchmarkSettings) -> RewardModel:
    """Loads the reward model named, or makes a llama-style one of random weights.

    Raises:
        CheckpointError: If it cannot be loaded.
        InvalidArgumentError: If it has no scalar head.
    """
    set_seed(settings.seed)
    return _reward_model(settings, _llama(settings))


def _reward_model(settings: BenchmarkSettings, base_config: PretrainedConfig) -> RewardModel:
    dtype = getattr(torch, settings.dtype)
    if settings.reward_model is not None:
        reward_model = RewardModel.from_pretrained(settings.reward_model, dtype=dtype)
        reward_model.model.to(settings.device)
        if reward_model.kind != "causal":
            raise InvalidArgumentError(
                f"Expected a reward model with a scalar head, but {settings.reward_model!r} is of kind "
                f"{reward_model.kind!r}. Leave it out: models of other kinds are made in the base model's shape."
            )
        return reward_model
    config = copy.deepcopy(base_config)
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
    """Reads the text of a file, or the column "text" of .jsonl and .json; at most `MAX_CHARACTERS` of it.

    Raises:
        InvalidArgumentError: If there is no such file, or no such column.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidArgumentError(f"Expected a file of text, but there is no file {path!r}. Give the path of one.")
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix not in (".jsonl", ".json"):
            return content[:MAX_CHARACTERS]
        # Not splitlines(), because JSON strings may hold other line separators.
        lines = [line for line in content.split("\n") if line.strip()]
        rows = json.loads(content) if file.suffix == ".json" else [json.loads(line) for line in lines]
        return "\n\n".join(row["text"] for row in rows)[:MAX_CHARACTERS]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f'Expected UTF-8 text, or rows with a column "text" in .jsonl and .json, but {path!r} holds something else '
            f"({type(error).__name__}: {error}). Convert it."
        ) from error


@dataclass(frozen=True)
class TokenSource:
    """Rows of tokens to continue: random tokens, or passages of a text.

    Attributes:
        vocab_size: Random tokens have ids below this.
        seed: Seed of the random tokens.
        ids: Tokens of a text; None for random tokens.
        force: Whether the base model is made to write the text; see `TextHint` and `ForceText`.
    """

    vocab_size: int
    seed: int
    ids: Int[Tensor, " tokens"] | None = None
    force: bool = False

    def rows(self, batch: int, length: int) -> Int[Tensor, "batch length"]:
        """Rows of random tokens, or of different passages of the text.

        Raises:
            InvalidArgumentError: If the text is too short.
        """
        if self.ids is None:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randint(3, self.vocab_size, (batch, length), generator=generator)
        starts = len(self.ids) - length + 1
        if starts < batch:
            raise InvalidArgumentError(
                f"Expected a text of {length + batch - 1} tokens or more for {batch} different rows of {length}, but "
                f"it has {len(self.ids)}. Give a longer text, or fewer or shorter prompts."
            )
        rows = [self.ids[start : start + length] for start in range(0, starts, starts // batch)]
        return torch.stack(rows[:batch])


def make_token_source(settings: BenchmarkSettings, models: BenchmarkModels, text: str | None) -> TokenSource:
    """A source of random tokens, or of the tokens of a text.

    Raises:
        InvalidArgumentError: If the text is too short for the longest prompts and largest batch.
    """
    if text is None or models.tokenizer is None:
        return TokenSource(models.vocab_size, settings.seed)
    ids = torch.tensor(models.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    source = TokenSource(models.vocab_size, settings.seed, ids, force=settings.base is None)
    # Fails if the text is too short, before anything is measured.
    source.rows(max(settings.batch_sizes), max(settings.prompt_lengths) + settings.new_tokens)
    return source


class TextHint(LogitsProcessor):
    """The first processor: makes the scores of a model of random weights look like those of a language model.

    Tokens score by their frequency in the text, with the model's own scores as noise. The next token of the text scores
    as high as the best, so that it is among the candidates.
    """

    def __init__(self, source: TokenSource, rows: Int[Tensor, "batch length"], vocab_size: int) -> None:
        self.rows = rows
        counts = torch.bincount(cast(Tensor, source.ids), minlength=vocab_size)
        self.log_frequency = counts.to(rows.device).float().log()

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        likely = scores + self.log_frequency
        following = self.rows[:, input_ids.shape[1], None]
        return likely.scatter(-1, following, likely.amax(-1, keepdim=True))


class ForceText(LogitsProcessor):
    """The last processor: leaves the next token of the text as the only possible one."""

    def __init__(self, rows: Int[Tensor, "batch length"]) -> None:
        self.rows = rows

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        following = self.rows[:, input_ids.shape[1], None]
        return torch.full_like(scores, float("-inf")).scatter(-1, following, 0.0)
