"""What `rgtg evaluate` is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate.methods import Method, check_names

DTYPES = ("auto", "float32", "bfloat16", "float16")
PROMPTS = ("prompts", "prompt_column", "split", "limit")
WITHOUT_EFFECT = (*PROMPTS, "methods", "judges", "label_names", "output", "device", "seeds", "resamples", "compare")
"""Settings that do not change what a policy answers to a prompt, apart from rounding; prompts are compared as such."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Which methods continue which prompts, and who judges the answers.

    Attributes:
        base: Hub id or folder of the base model.
        prompts: File (json, jsonl, csv, each also as .gz, parquet, or txt with one prompt a line) or Hub id of a data
            set.
        methods: What is compared; the first is what the others are compared with.
        judges: What judges the answers, by name; see `load_reward`. The first is the one that is shown first.
        output: Folder of everything that is written.
        label_names: For judges that tell several labels apart, the one whose log-odds are the reward, by judge.
        compare: Pairs of curves (their families) to compare at equal divergence.
        seeds: How many answers each policy draws to each prompt. Answer i uses the same random numbers in every policy.
        seed: Seed of every draw.
        max_new_tokens: Longest answer in tokens.
        top_k: How many candidates, where a method does not say; 0 is the whole vocabulary.
        batch_size: Prompts at once. Changes nothing but rounding and speed.
        prompt_column: Column of texts or lists of messages; by default the first there is of prompt, messages, text.
        prompt_tokens: Use this many tokens of each text only, so that the model completes what is left out.
        prompt_prefix: Put before each text; see `PairSettings`.
        split: Split of the data set; by default train, or else the first.
        limit: Most prompts to read.
        resamples: Bootstrap resamples of the prompts.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU and "auto" elsewhere.
        guide_dtype: The same for the models that guide and rank; by default as `dtype`. It decides which policies are
            compared, whose divergence is measured as exactly whatever it is.
        device: Where to run; by default a GPU if there is one, of several processes one each.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    base: str
    prompts: str
    methods: tuple[Method, ...]
    judges: Mapping[str, str]
    output: str
    label_names: Mapping[str, str] | None = None
    compare: tuple[tuple[str, str], ...] = ()
    seeds: int = 1
    seed: int = 0
    max_new_tokens: int = 64
    top_k: int = 20
    batch_size: int = 32
    prompt_column: str | None = None
    prompt_tokens: int | None = None
    prompt_prefix: str = ""
    split: str | None = None
    limit: int | None = None
    resamples: int = 2000
    dtype: str | None = None
    guide_dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        curves = {method.curve for method in check_names(self.methods)}
        unknown = set(self.label_names or ()) - set(self.judges)
        rules = {
            "methods": (bool(self.methods), "one method or more"),
            "judges": (
                bool(self.judges) and all(map(_is_column, self.judges)),
                "names of letters and digits, each with what judges",
            ),
            "label_names": (not unknown, f"labels of the judges {', '.join(self.judges)}"),
            "compare": (
                all(len(pair) == 2 and set(pair) <= curves for pair in self.compare),
                f"pairs of {', '.join(sorted(curves))}",
            ),
            "seeds": (self.seeds > 0, "1 answer to each prompt or more"),
            "max_new_tokens": (self.max_new_tokens > 0, "1 token or more, such as 64"),
            "top_k": (self.top_k >= 0, "a number of tokens, where 0 is all"),
            "batch_size": (self.batch_size > 0, "1 or more, such as 32"),
            "prompt_tokens": (self.prompt_tokens is None or self.prompt_tokens > 0, "1 token or more"),
            "limit": (self.limit is None or self.limit > 0, "1 prompt or more"),
            "resamples": (self.resamples >= 100, "100 or more, such as 2000"),
            "dtype": (self.dtype in (None, *DTYPES), f"one of {', '.join(DTYPES)}"),
            "guide_dtype": (self.guide_dtype in (None, *DTYPES), f"one of {', '.join(DTYPES)}"),
        }
        for name, (kept, wanted) in rules.items():
            if not kept:
                raise InvalidArgumentError(
                    f"Expected {name} to be {wanted}, but got {getattr(self, name)!r}. Change --{name}."
                )

    def identity(self) -> dict[str, Any]:
        """Everything that decides what the continuations of a policy are."""
        return {name: value for name, value in asdict(self).items() if name not in WITHOUT_EFFECT}


def _is_column(name: str) -> bool:
    return name.replace("_", "").replace("-", "").isalnum()
