"""Layouts of published reward models: one linear layer on a causal backbone, under many names.

transformers calls the head `score` and gives it no bias. Others call it `value_head` (OpenRLHF), `v_head` (TRL's value
head, Athene), `regression_head` (UltraRM, Eurus) or `score_head` (beaver), some with a bias, and OpenRLHF normalises
rewards by a mean and a standard deviation in the config.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from rgtg_logits.errors import CheckpointError
from rgtg_logits.hub import Checkpoint

HEAD = "score"
"""What transformers calls the head of a causal sequence classifier."""
_NAMES = (HEAD, "value_head", "v_head.summary", "v_head", "regression_head", "score_head", "reward_head", "rm_head")
"""Names of linear heads of one output."""
_HARMLESS = re.compile(r"(^|\.)(lm_head|rotary_emb|position_ids|masked_bias|attn\.bias)(\.|$)")
"""Weights that no reward depends on: output layers of language models, and constants that models compute themselves."""


@dataclass(frozen=True)
class HeadLayout:
    """The head of a checkpoint.

    Attributes:
        key_mapping: Renames its weights, as transformers' argument of that name.
        scale: A reward is `scale` times the head's output without bias …
        offset: … plus this.
    """

    key_mapping: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0


def head_layout(checkpoint: Checkpoint) -> HeadLayout | None:
    """The layout of a checkpoint with a linear head of one output; None if it has none.

    Raises:
        CheckpointError: If the head is an MLP, or the config normalises rewards by numbers that are none.
    """
    names = checkpoint.weight_names
    layers = sorted(name for name in names if re.match(rf"({'|'.join(map(re.escape, _NAMES))})\.\d+\.weight$", name))
    if layers:
        raise CheckpointError(
            f"Expected {checkpoint.name!r} to have a head of one linear layer, but it has several "
            f"({', '.join(layers)}), as an MLP. Load it with its own code and pass a function of texts to "
            "WeightedScorer, or let it label answers (`rgtg pairs --reward`)."
        )
    for head in _NAMES:
        if f"{head}.weight" in names and checkpoint.shape(f"{head}.weight")[0] == 1:
            bias = checkpoint.values(f"{head}.bias")[0] if f"{head}.bias" in names else 0.0
            mean, std = _normalisation(checkpoint)
            mapping = {} if head == HEAD else {rf"^{re.escape(head)}\.": f"{HEAD}."}
            return HeadLayout(mapping, 1 / std, (bias - mean) / std)
    return None


def check_unused(name: str, class_name: str, unused: set[str]) -> None:
    """Refuses weights in a checkpoint that the model does not use.

    Raises:
        CheckpointError: If rewards may depend on one of them.
    """
    left = sorted(weight for weight in unused if not _HARMLESS.search(weight) and weight != f"{HEAD}.bias")
    if left:
        shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise CheckpointError(
            f"Expected {class_name} to use every weight of {name!r}, but it has no place for {shown}: rewards would "
            "be those of another model. Merge adapters before saving; a model with code of its own has to be loaded "
            "with it, and passed as a function of texts to WeightedScorer, or to `rgtg pairs --reward`."
        )


def _normalisation(checkpoint: Checkpoint) -> tuple[float, float]:
    """Mean and standard deviation by which OpenRLHF normalises rewards; 0 and 1 if it does not."""
    config = checkpoint.config
    # A checkpoint of this library says what its rewards are in `config.rgtg`.
    if checkpoint.rgtg is not None or not config.get("normalize_reward"):
        return 0.0, 1.0
    numbers: list[Any] = [config.get(key) for key in ("mean", "std")]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or numbers[1] <= 0:
        raise CheckpointError(
            f"Expected the config of {checkpoint.name!r} to say the mean and the standard deviation of its rewards, "
            f"because it says normalize_reward, but got {numbers[0]!r} and {numbers[1]!r}. Correct the config."
        )
    return float(numbers[0]), float(numbers[1])
