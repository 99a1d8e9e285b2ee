"""The training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.objectives import OBJECTIVES


@dataclass
class PartialRewardConfig(RewardConfig):
    """TRL's `RewardConfig` (and so `TrainingArguments`) with the objective of a reward model of prefixes.

    Unlike TRL, it runs on a machine without an accelerator as it is: mixed precision in bfloat16, TRL's default, is
    switched on only where the device has it, and a CPU computes in float32 unless `bf16` says otherwise.

    Args:
        objective: "partial_bt" is Bradley-Terry on every prefix pair (PARGS, arXiv 2406.07780), "full_bt" on the
            finished answers only, which is TRL's own loss.

    Raises:
        InvalidArgumentError: If there is no such objective.
    """

    objective: str = field(
        default="partial_bt",
        metadata={
            "help": "What to train on: 'partial_bt' (Bradley-Terry on every prefix of a pair, for guided decoding) or "
            "'full_bt' (on finished answers only, an ordinary reward model)."
        },
    )

    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to use bfloat16 mixed precision. Not set: where the accelerator has it, without fp16."
        },
    )

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidArgumentError(
                f"Expected objective to be one of {', '.join(map(repr, OBJECTIVES))}, but got {self.objective!r}. "
                "Choose 'partial_bt' for guided decoding, 'full_bt' for a reward model of finished texts."
            )
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        super().__post_init__()
