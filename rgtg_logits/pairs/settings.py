"""What `rgtg pairs` is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb, isfinite
from pathlib import Path
from typing import Any

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import display_name
from rgtg_logits.guidance import RESTS

FORMATS = ("pairs", "labels")
LABELS = ("bt", "argmax")
SUFFIXES = (".jsonl", ".parquet")
DTYPES = ("auto", "float32", "bfloat16", "float16")
WITHOUT_EFFECT = ("output", "batch_size", "device")
"""Settings that change nothing but rounding, and where the rows go."""


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which prompts, drawn from which model, judged by what, written where and how.

    Attributes:
        base: Hub id or folder of the model that answers the prompts.
        prompts: File (json, jsonl, csv, each also as .gz, parquet, or txt with one prompt a line) or Hub id of a data
            set.
        reward: What judges finished answers; see `load_reward`.
        output: File to write, .jsonl or .parquet.
        format: "pairs" (prompt, chosen, rejected) or "labels" (prompt, completion, reward).
        samples: Answers to each prompt; by default 2 for pairs and 1 for labels.
        pairs_per_prompt: Most pairs made of the answers to one prompt; by default `samples // 2`, which uses every
            answer once. More pairs share answers.
        label: Which answer is chosen: "bt" draws it with probability sigmoid(scale · reward difference), as the
            Bradley-Terry model has it; with "argmax" the better one always is.
        scale: Factor of reward differences in that draw, in nats per unit of reward: near 0 a fair coin, 1 the reward
            as it is, very large the same as "argmax".
        label_name: For a classifier with several labels, the one (its name or index) whose log-odds are the reward.
        prompt_column: Column of texts or lists of messages; by default the first there is of prompt, messages, text.
        prompt_tokens: Use this many tokens of each text only, so that the model completes what is left out.
        prompt_prefix: Put before each text, such as the token that opens every text where the model expects one and its
            tokenizer does not add it ("<|endoftext|>"). It is part of the prompt in the rows.
        split: Split of the data set; by default train, or else the first.
        limit: Most rows to read.
        temperature: Divides the base model's scores; 1 leaves them as they are.
        top_p: Draw from the most likely tokens that have this probability together; 1 is all.
        top_k: Draw from this many of the most likely tokens; 0 is all.
        guide: Hub id or folder of a reward model that guides the answers, so that data are of the texts that guidance
            meets; `top_k` and `top_p` then say which tokens it scores.
        beta: Strength of the guide, in nats per unit of its reward.
        rest: With a guide, what becomes of the other tokens: "drop" or "keep" (see `PartialRewardLogitsProcessor`).
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers drawn at once. Changes nothing but rounding.
        seed: Seed of every draw.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU, where half precision is
            slow, and "auto" elsewhere.
        device: Where to run; by default a GPU if there is one.

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
        least, most = 2 if self.format == "pairs" else 1, comb(self.drawn, 2)
        rules = {
            "output": (Path(self.output).suffix in SUFFIXES, f"a file that ends in {' or '.join(SUFFIXES)}"),
            "format": (self.format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "samples": (self.drawn >= least, f"{least} or more for {self.format}"),
            "pairs_per_prompt": (
                self.pairs_per_prompt is None or 0 < self.pairs_per_prompt <= most,
                f"between 1 and {most}, the number of pairs of {self.drawn} answers",
            ),
            "label": (self.label in LABELS, f"one of {', '.join(LABELS)}"),
            "scale": (isfinite(self.scale) and self.scale > 0, "a finite factor above 0, such as 1"),
            "temperature": (isfinite(self.temperature) and self.temperature > 0, "a finite number above 0, such as 1"),
            "top_p": (0 < self.top_p <= 1, "a probability above 0, where 1 cuts nothing"),
            "top_k": (self.top_k >= 0, "a number of tokens, where 0 cuts nothing"),
            "beta": (isfinite(self.beta) and self.beta >= 0, "a finite strength of 0 or more, such as 1"),
            "rest": (self.rest in RESTS, f"one of {', '.join(RESTS)}"),
            "max_new_tokens": (self.max_new_tokens > 0, "1 token or more, such as 128"),
            "batch_size": (self.batch_size > 0, "1 or more, such as 16"),
            "prompt_tokens": (self.prompt_tokens is None or self.prompt_tokens > 0, "1 token or more"),
            "limit": (self.limit is None or self.limit > 0, "1 row or more"),
            "dtype": (self.dtype in (None, *DTYPES), f"one of {', '.join(DTYPES)}"),
        }
        for name, (kept, wanted) in rules.items():
            if not kept:
                raise InvalidArgumentError(
                    f"Expected {name} to be {wanted}, but got {getattr(self, name)!r}. Change --{name}, or leave it "
                    "out if it has a default."
                )

    @property
    def drawn(self) -> int:
        """Answers to each prompt."""
        return self.samples if self.samples is not None else 2 if self.format == "pairs" else 1

    @property
    def compared(self) -> int:
        """Most pairs made of the answers to one prompt."""
        return self.pairs_per_prompt if self.pairs_per_prompt is not None else self.drawn // 2

    def identity(self) -> dict[str, Any]:
        """Everything that decides what the rows are."""
        values = {**asdict(self), "samples": self.drawn, "pairs_per_prompt": self.compared}
        return {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}

    def public(self) -> dict[str, Any]:
        """The settings that are set, without the place of anything on this machine."""
        places = ("base", "prompts", "reward", *(["guide"] if self.guide is not None else []))
        named = {name: display_name(getattr(self, name)) for name in places}
        named["output"] = Path(self.output).name
        values = {**asdict(self), "samples": self.drawn, **named}
        if self.format == "pairs":
            values["pairs_per_prompt"] = self.compared
        unused = [] if self.format == "pairs" else ["pairs_per_prompt", "label", "scale"]
        unused += [] if self.guide is not None else ["beta", "rest"]
        return {name: value for name, value in values.items() if value not in (None, "") and name not in unused}
