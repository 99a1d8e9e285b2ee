"""The settings of `rgtg evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rgtg_logits.evaluate.methods import Method, check_unique_names
from rgtg_logits.settings import DTYPES, Rule, at_least, check_rules, one_of

PROMPTS = ("prompts", "prompt_column", "split", "limit")
WITHOUT_EFFECT = (*PROMPTS, "methods", "judges", "label_names", "output", "device", "seeds", "resamples", "compare")
"""Settings that do not determine a policy's answer to a prompt; the prompts themselves are compared by a digest."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Methods, prompts and judges of an evaluation.

    Attributes:
        base: Hub id or folder of the base model.
        prompts: File (json, jsonl, csv, each also as .gz, parquet, or txt with one prompt a line) or Hub id of a data
            set.
        methods: Methods to compare; the first one is the baseline.
        judges: Rewards of the answers, by name; see `load_reward`. Tables begin with the first one.
        output: Output folder.
        label_names: For classifiers with several labels, the label whose log-odds are the reward, by judge.
        compare: Pairs of curves (their families) to compare at equal divergence.
        seeds: Answers that each policy gives to each prompt. Answer i uses the same random numbers in every policy
            (common random numbers).
        seed: Seed of all random numbers.
        max_new_tokens: Longest answer in tokens.
        top_k: Number of candidates, for methods that do not set it; 0 is the whole vocabulary.
        batch_size: Prompts in a batch. Changes nothing but rounding and speed.
        prompt_column: Column of texts or lists of messages; by default the first that exists of prompt, messages, text.
        prompt_tokens: Number of tokens of each text to use as the prompt, so that the model completes the text.
        prompt_prefix: Text put before each prompt; see `PairSettings`.
        split: Split of the data set; by default train, or else the first.
        limit: Largest number of prompts to read.
        resamples: Resamples of the prompts in the bootstrap.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU and "auto" elsewhere.
        guide_dtype: The same for the models that guide and rank; by default as `dtype`. It affects the policy, not the
            precision of its divergence.
        device: Device of all models; by default a GPU if there is one, a different one for each process.

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
        check_unique_names(self.methods)
        curves = {method.curve for method in self.methods}
        are_columns = bool(self.judges) and all(map(_is_column, self.judges))
        are_pairs = all(len(pair) == 2 and set(pair) <= curves for pair in self.compare)
        rules = {
            "methods": Rule(bool(self.methods), "one method or more"),
            "judges": Rule(are_columns, "names of letters and digits, each with a reward"),
            "label_names": Rule(
                set(self.label_names or ()) <= set(self.judges), f"labels of the judges {', '.join(self.judges)}"
            ),
            "compare": Rule(are_pairs, f"pairs of {', '.join(sorted(curves))}"),
            "seeds": at_least(1, self.seeds, "1 answer to each prompt or more"),
            "max_new_tokens": at_least(1, self.max_new_tokens, "1 token or more, such as 64"),
            "top_k": at_least(0, self.top_k, "a number of tokens, where 0 is all"),
            "batch_size": at_least(1, self.batch_size, "1 or more, such as 32"),
            "prompt_tokens": at_least(1, self.prompt_tokens, "1 token or more"),
            "limit": at_least(1, self.limit, "1 prompt or more"),
            "resamples": at_least(100, self.resamples, "100 or more, such as 2000"),
            "dtype": one_of(self.dtype, DTYPES, optional=True),
            "guide_dtype": one_of(self.guide_dtype, DTYPES, optional=True),
        }
        check_rules(self, rules, lambda name: f"Change --{name}.")

    def identity(self) -> dict[str, Any]:
        """The settings that determine the answers of a policy."""
        return {name: value for name, value in asdict(self).items() if name not in WITHOUT_EFFECT}


def _is_column(name: str) -> bool:
    return name.replace("_", "").replace("-", "").isalnum()
