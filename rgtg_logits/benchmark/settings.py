"""Settings of `rgtg benchmark` and `rgtg benchmark --train`: which methods are measured, and at which sizes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rgtg_logits.errors import InvalidArgumentError

WITHOUT_CANDIDATES = ("plain", "floor")
"""Methods that score no candidates, and so are measured once for all numbers of candidates."""
LIBRARY_METHODS = (
    "guided", "compiled", "top_p", "vocabulary", "log_ratio", "log_ratio_pair", "retokenizing", "weighted",
)  # fmt: skip
"""Methods in which `PartialRewardLogitsProcessor` guides."""
METHODS = (*WITHOUT_CANDIDATES, *LIBRARY_METHODS, "replicated", "recompute")
"""Every method of generating that can be measured; `benchmark.methods` says what they are."""
DEFAULT_METHODS = ("plain", "floor", "guided", "replicated", "recompute")
TRAINING_METHODS = ("partial_bt", "shared_prompt", "trl", "row_per_prefix")
"""Every method of training that can be measured; `benchmark.training` says what they are."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Methods of generating and the sizes at which they are measured.

    Attributes:
        base: Hub id or folder of the base model; by default random weights, llama-style, of `layers` and `width`.
        reward_model: Hub id or folder of the reward model; by default of the base model's shape, random weights.
        text: A file of real text to continue: plain, or .jsonl or .json with a column "text". Left out, prompts are
            random tokens.
        layers: Layers of the random models.
        width: Width of the random models.
        prompt_lengths: Prompt lengths in tokens.
        batch_sizes: Numbers of prompts.
        top_ks: Numbers of candidates.
        new_tokens: Tokens to generate in each run (at most 3 by recomputing).
        rounds: How often each method takes its turn.
        methods: Names from `METHODS`.
        device: Where the models are.
        dtype: Type of their weights, one of `DTYPES`.
        seed: Seed of the weights and prompts.
        prepack: Whether this library's methods lay out the reward models' weights beforehand, on a CPU; the floor stays
            as it is.

    Raises:
        InvalidArgumentError: If a value is out of its range, or values do not go together.
    """

    base: str | None = None
    reward_model: str | None = None
    text: str | None = None
    layers: int = 12
    width: int = 768
    prompt_lengths: tuple[int, ...] = (64, 512)
    batch_sizes: tuple[int, ...] = (1,)
    top_ks: tuple[int, ...] = (20,)
    new_tokens: int = 24
    rounds: int = 3
    methods: tuple[str, ...] = DEFAULT_METHODS
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    prepack: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", _current_names(self.methods, {"ours": "guided"}))
        unknown = set(self.methods) - set(METHODS)
        if unknown:
            raise InvalidArgumentError(
                f"Expected methods among {', '.join(METHODS)}, but got {', '.join(sorted(unknown))}. Check --method."
            )
        if self.dtype not in DTYPES:
            raise InvalidArgumentError(
                f"Expected dtype to be one of {', '.join(DTYPES)}, but got {self.dtype!r}. Choose one of them."
            )
        sizes = {
            "rounds": self.rounds, "new_tokens": self.new_tokens - 1, "top_k": min(self.top_ks, default=0),
            "batch_size": min(self.batch_sizes, default=0), "prompt_length": min(self.prompt_lengths, default=0),
        }  # fmt: skip
        _check_sizes(sizes, "at least one round, candidate, prompt and token of it, and two new tokens")
        if self.prepack and (self.device != "cpu" or "compiled" in self.methods):
            raise InvalidArgumentError(
                "Expected models on the CPU and no method that is compiled with --prepack, but got "
                f"--device {self.device} and the methods {', '.join(self.methods)}. Leave one of them out."
            )
        if "retokenizing" in self.methods and self.text is None:
            raise InvalidArgumentError(
                "Expected a text for the method retokenizing, because its tokenizer is trained on it and random tokens "
                "are no text, but got none. Give --text, or leave that method out."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingBenchmarkSettings:
    """Methods of training and the sizes at which they are measured.

    Attributes:
        layers: Layers of the llama-style model.
        width: Its width.
        prompt_lengths: Prompt lengths in tokens.
        answer_length: Tokens of each answer.
        batch_sizes: Pairs in one optimiser step; rows with "row_per_prefix".
        steps: Steps that are timed in each turn; one more goes before them.
        rounds: How often each method takes its turn.
        methods: Names from `TRAINING_METHODS`.
        device: "cpu", or "cuda" for the GPU that the trainer chooses.
        seed: Seed of weights and texts.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    layers: int = 4
    width: int = 256
    prompt_lengths: tuple[int, ...] = (64,)
    answer_length: int = 128
    batch_sizes: tuple[int, ...] = (8,)
    steps: int = 4
    rounds: int = 3
    methods: tuple[str, ...] = TRAINING_METHODS
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", _current_names(self.methods, {"ours": "partial_bt"}))
        unknown = set(self.methods) - set(TRAINING_METHODS)
        if unknown or not self.methods:
            raise InvalidArgumentError(
                f"Expected methods among {', '.join(TRAINING_METHODS)}, but got "
                f"{', '.join(sorted(unknown)) or 'none'}. Choose one of them."
            )
        sizes = {
            "prompt_length": min(self.prompt_lengths, default=0), "batch_size": min(self.batch_sizes, default=0),
            "answer_length": self.answer_length, "steps": self.steps, "rounds": self.rounds, "layers": self.layers,
            "width": self.width // 64,
        }  # fmt: skip
        _check_sizes(sizes, "at least one of everything (and a width of 64)")


def _check_sizes(sizes: Mapping[str, int], expected: str) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InvalidArgumentError(f"Expected {expected}, but {name} is too small. Raise it.")


def _current_names(methods: Sequence[str], renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Methods by their current names; old names are accepted until 0.2, with a warning."""
    for old, new in renamed.items():
        if old in methods:
            warnings.warn(
                f"The method {old!r} is called {new!r} now, and its old name ends with the next release. "
                f"Name it {new!r}.",
                FutureWarning,
                stacklevel=4,
            )
    return tuple(renamed.get(method, method) for method in methods)
