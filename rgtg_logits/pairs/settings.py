"""The settings of `rgtg pairs`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb, isfinite
from pathlib import Path
from typing import Any

from rgtg_logits.files import display_name
from rgtg_logits.guidance import RESTS
from rgtg_logits.settings import DTYPES, Rule, at_least, check_rules, one_of, positive

ROW_FORMATS = ("pairs", "labels")
LABELS = ("bt", "argmax")
SUFFIXES = (".jsonl", ".parquet")
WITHOUT_EFFECT = ("output", "batch_size", "device")
"""Settings that do not determine the rows: batch size and device only change rounding."""


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Prompts, base model, reward, and the form of the rows.

    Attributes:
        base: Hub id or folder of the model that answers the prompts.
        prompts: File (json, jsonl, csv, each also as .gz, parquet, or txt with one prompt a line) or Hub id of a data
            set.
        reward: Reward of finished answers; see `load_reward`.
        output: File to write, .jsonl or .parquet.
        format: "pairs" (prompt, chosen, rejected) or "labels" (prompt, completion, reward).
        samples: Answers to each prompt; by default 2 for pairs and 1 for labels.
        pairs_per_prompt: Most pairs made of the answers to one prompt; by default `samples // 2`, which uses every
            answer once. More pairs share answers.
        label: How the chosen answer is determined: "bt" draws it with probability sigmoid(scale · reward difference),
            the Bradley-Terry model; "argmax" takes the one with the higher reward.
        scale: Factor of reward differences in the Bradley-Terry draw, in nats per unit of reward: near 0 the draw is a
            fair coin, 1 uses the reward as it is, a very large factor is the same as "argmax".
        label_name: For a classifier with several labels, the label (its name or index) whose log-odds are the reward.
        prompt_column: Column of texts or lists of messages; by default the first that exists of prompt, messages, text.
        prompt_tokens: Number of tokens of each text to use as the prompt, so that the model completes the text.
        prompt_prefix: Text put before each prompt, such as "<|endoftext|>" for a model that expects this token at the
            beginning and whose tokenizer does not add it. It is part of the prompt in the rows.
        split: Split of the data set; by default train, or else the first.
        limit: Largest number of rows to read.
        temperature: Divides the base model's scores; 1 leaves them as they are.
        top_p: Sample from the most likely tokens that hold this probability together; 1 is all.
        top_k: Sample from this many of the most likely tokens; 0 is all.
        guide: Hub id or folder of a reward model that guides the answers, so that the data consist of guided texts;
            `top_k` and `top_p` then determine its candidates.
        beta: Strength of the guide, in nats per unit of its reward.
        rest: With a guide, treatment of the tail of the distribution, the tokens that are no candidates: "drop" or
            "keep" (see `PartialRewardLogitsProcessor`).
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers sampled at once. Changes nothing but rounding.
        seed: Seed of every draw.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU, where half precision is
            slow, and "auto" elsewhere.
        device: Device of all models; by default a GPU if there is one.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    base: str
    prompts: str
    reward: str
    output: str
    format: str = "pairs"
    samples: int | None = None
    pairs_per_prompt: int | None = None
    label: str = "bt"
    scale: float = 1.0
    label_name: str | None = None
    prompt_column: str | None = None
    prompt_tokens: int | None = None
    prompt_prefix: str = ""
    split: str | None = None
    limit: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    guide: str | None = None
    beta: float = 1.0
    rest: str = "drop"
    max_new_tokens: int = 128
    batch_size: int = 16
    seed: int = 0
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        least = 2 if self.format == "pairs" else 1
        most = comb(self.num_answers, 2)
        pairs = self.pairs_per_prompt
        rules = {
            "output": Rule(Path(self.output).suffix in SUFFIXES, f"a file that ends in {' or '.join(SUFFIXES)}"),
            "format": one_of(self.format, ROW_FORMATS),
            "samples": at_least(least, self.samples, f"{least} or more for {self.format}"),
            "pairs_per_prompt": Rule(
                pairs is None or 0 < pairs <= most,
                f"between 1 and {most}, the number of pairs of {self.num_answers} answers",
            ),
            "label": one_of(self.label, LABELS),
            "scale": positive(self.scale, "a finite factor above 0, such as 1"),
            "temperature": positive(self.temperature, "a finite number above 0, such as 1"),
            "top_p": Rule(0 < self.top_p <= 1, "a probability above 0, where 1 cuts nothing"),
            "top_k": at_least(0, self.top_k, "a number of tokens, where 0 cuts nothing"),
            "beta": Rule(isfinite(self.beta) and self.beta >= 0, "a finite strength of 0 or more, such as 1"),
            "rest": one_of(self.rest, RESTS),
            "max_new_tokens": at_least(1, self.max_new_tokens, "1 token or more, such as 128"),
            "batch_size": at_least(1, self.batch_size, "1 or more, such as 16"),
            "prompt_tokens": at_least(1, self.prompt_tokens, "1 token or more"),
            "limit": at_least(1, self.limit, "1 row or more"),
            "dtype": one_of(self.dtype, DTYPES, optional=True),
        }
        check_rules(self, rules, lambda name: f"Change --{name}, or leave it out if it has a default.")

    @property
    def num_answers(self) -> int:
        """Answers to each prompt."""
        if self.samples is not None:
            return self.samples
        return 2 if self.format == "pairs" else 1

    @property
    def num_pairs(self) -> int:
        """Largest number of pairs made of the answers to one prompt."""
        return self.num_answers // 2 if self.pairs_per_prompt is None else self.pairs_per_prompt

    def identity(self) -> dict[str, Any]:
        """The settings that determine the rows."""
        values = {**asdict(self), "samples": self.num_answers, "pairs_per_prompt": self.num_pairs}
        return {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}

    def public(self) -> dict[str, Any]:
        """The settings that have an effect, with local paths cut to their last part."""
        values = {**asdict(self), "samples": self.num_answers, "output": Path(self.output).name}
        for name in ("base", "prompts", "reward", "guide"):
            if values[name] is not None:
                values[name] = display_name(values[name])
        # Settings without an effect would mislead readers of the facts.
        unused = [] if self.guide is not None else ["beta", "rest"]
        if self.format == "pairs":
            values["pairs_per_prompt"] = self.num_pairs
        else:
            unused += ["pairs_per_prompt", "label", "scale"]
        return {name: value for name, value in values.items() if value not in (None, "") and name not in unused}
