"""The training arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES, Objective
from rgtg_logits.reward_model import RewardModelConfig
from rgtg_logits.train.objectives import Weights


@dataclass
class PartialRewardConfig(RewardConfig):
    """TRL's `RewardConfig` (and so `TrainingArguments`) with the objective of a reward model of prefixes.

    Unlike TRL, it runs on a machine without an accelerator as it is: mixed precision in bfloat16, TRL's default, is
    switched on only where the device has it, and a CPU computes in float32 unless `bf16` says otherwise.

    Args:
        objective: What to train on. From preference pairs: "partial_bt" (Bradley-Terry on every prefix pair; PARGS,
            arXiv 2406.07780), "full_bt" (on the finished answers only, which is TRL's own loss), "farma" (that, and
            every prefix as good as its best next token; arXiv 2502.04517) and "arm" (on log-probabilities of finished
            answers; GenARM, arXiv 2410.08193). From answers with a reward each: "value" (the mean of the rewards that a
            prefix leads to; arXiv 2310.17022), "cumulative" (the same, later prefixes weighing more; RAD, arXiv
            2310.09520) and "soft_value" (the logarithm of the mean of exp(soft_value_beta · reward), which leads to the
            optimum of KL-regularised RLHF). `losses.py` has the equations.
        kind: What kind of checkpoint to make: "causal" (a scalar head), "vocabulary" (a language model whose next-token
            logits are rewards: guidance costs one forward for any number of candidates) or "log_ratio" (one whose
            log-probabilities are). By default the usual one of the objective.
        soft_value_beta: Of "soft_value": the strength of the KL-regularised optimum, in nats per unit of the data's
            rewards, > 0. Larger is further from the base model, and needs more data.
        soft_value_clip: Of "soft_value": how far, in nats, a reward may be above the prediction before its loss goes
            on as a straight line, > 0. 5 lets nearly all through; smaller is steadier and biased towards the mean.
        td_lambda: Of "value" and "soft_value": from 0 to 1. 1 fits every prefix to the reward of the finished answer.
            Less fits it to what the model itself says of the prefixes that follow, the nearer the more, about
            1 / (1 - td_lambda) tokens on: less noise, for a model that is wrong at first. Evaluation always takes 1.
        arm_beta: Of "arm": nats of preference per nat of log-probability, > 0. The paper takes 0.05 for whole answers;
            1 makes the sum of log-probabilities itself the reward.
        farma_weight: Of "farma": weight of the part about unfinished prefixes, ≥ 0. 0 trains on finished answers only.
        shared_prompt: Whether to read both answers of a pair in one row behind one copy of the prompt. It gives the
            same rewards with fewer tokens: worth it where prompts are longer than answers. Models that cannot be read
            so are told by the first batch, and read as usual. For pairs and the kind "causal".
        resume_from_checkpoint: A checkpoint's folder, or true for the newest whole one in the output folder, or the
            beginning if there is none yet.

    Raises:
        InvalidArgumentError: If there is no such objective, it cannot make that kind, or a number is out of range.
    """

    objective: str = field(
        default="partial_bt",
        metadata={
            "help": "What to train on. From preference pairs: 'partial_bt' (Bradley-Terry on every prefix of a pair, "
            "for guided decoding), 'full_bt' (on finished answers only, an ordinary reward model), 'farma' (that, and "
            "every prefix as good as its best next token), 'arm' (on log-probabilities). From answers with a reward "
            "each: 'value' (expected reward of every prefix), 'cumulative' (later prefixes weighing more), "
            "'soft_value' (leads to the optimum of KL-regularised RLHF)."
        },
    )
    kind: str | None = field(
        default=None,
        metadata={
            "help": "Kind of checkpoint: 'causal' (scalar head), 'vocabulary' (next-token logits are rewards, for "
            "'partial_bt', 'value', 'soft_value', 'cumulative', 'farma'), 'log_ratio' (log-probabilities, for 'arm'). "
            "Not set: the usual one of the objective."
        },
    )
    soft_value_beta: float = field(
        default=1.0,
        metadata={
            "help": "For 'soft_value': strength of the KL-regularised optimum, in nats per unit of reward; above 0."
        },
    )
    soft_value_clip: float = field(
        default=5.0,
        metadata={
            "help": "For 'soft_value': nats by which a reward may exceed the prediction before its loss goes on as a "
            "straight line; above 0."
        },
    )
    td_lambda: float = field(
        default=1.0,
        metadata={
            "help": "For 'value' and 'soft_value': 1 fits prefixes to the finished answer's reward; less, to what the "
            "model says of the prefixes that follow, about 1 / (1 - td_lambda) tokens on."
        },
    )
    arm_beta: float = field(
        default=1.0, metadata={"help": "For 'arm': nats of preference per nat of log-probability; above 0."}
    )
    farma_weight: float = field(
        default=1.0, metadata={"help": "For 'farma': weight of the part about unfinished prefixes; 0 is off."}
    )

    shared_prompt: bool = field(
        default=False,
        metadata={"help": "Whether to read both answers of a pair in one row, behind one copy of the prompt."},
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Resume from this checkpoint; alone or 'true': from the newest one in the output folder, or from "
            "the beginning if there is none yet.",
            "nargs": "?",
            "const": "true",
        },
    )

    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={
            "help": "Whether callbacks go on where they were when training is resumed, such as early stopping, so that "
            "it ends as if it had not been interrupted."
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
        kinds = self.what.kinds
        self.kind = kinds[0] if self.kind is None else self.kind
        if self.kind not in kinds:
            able = [name for name, objective in OBJECTIVES.items() if self.kind in objective.kinds]
            raise InvalidArgumentError(
                f"Expected kind to be one of {', '.join(map(repr, kinds))}, which the objective {self.objective!r} can "
                f"train, but got {self.kind!r}. Leave it out"
                + (f", or choose one of the objectives {', '.join(able)}." if able else ".")
            )
        if self.shared_prompt and (self.what.data, self.kind) != ("pairs", "causal"):
            raise InvalidArgumentError(
                "Expected shared_prompt for pairs and the kind 'causal', whose scalar head is read at every token, but "
                f"got it for {self.objective!r} and {self.kind!r}. Leave it out."
            )
        self._check_numbers()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        super().__post_init__()

    def _check_numbers(self) -> None:
        for name in ("soft_value_beta", "soft_value_clip", "arm_beta", "farma_weight"):
            value, least = getattr(self, name), "≥ 0" if name == "farma_weight" else "> 0"
            if not math.isfinite(value) or value < 0 or (value == 0 and least == "> 0"):
                raise InvalidArgumentError(
                    f"Expected {name} to be a finite number {least}, but got {value}. Leave it out for the default."
                )
        if not 0 <= self.td_lambda <= 1 or (self.td_lambda < 1 and "td_lambda" not in self.what.settings):
            raise InvalidArgumentError(
                "Expected td_lambda from 0 to 1, and 1 but for the objectives 'value' and 'soft_value', but got "
                f"{self.td_lambda} for {self.objective!r}. Leave it out for the default."
            )
        if self.center_rewards_coefficient and self.objective not in ("partial_bt", "full_bt"):
            raise InvalidArgumentError(
                "Expected center_rewards_coefficient for the objectives 'partial_bt' and 'full_bt' only, but got "
                f"{self.center_rewards_coefficient} for {self.objective!r}, in whose loss there is no such part. "
                "Leave it out."
            )

    @property
    def what(self) -> Objective:
        """The objective."""
        return OBJECTIVES[self.objective]

    @property
    def weights(self) -> Weights:
        """The numbers in its loss."""
        return Weights(
            center=self.center_rewards_coefficient,
            beta=self.soft_value_beta,
            clip=self.soft_value_clip,
            arm_beta=self.arm_beta,
            farma_weight=self.farma_weight,
            td_lambda=self.td_lambda,
        )

    @property
    def reward_model(self) -> RewardModelConfig:
        """What the checkpoint says of itself, as far as it is known before any evaluation."""
        strength = self.what.strength
        return RewardModelConfig(
            kind=self.kind or self.what.kinds[0],
            objective=self.objective,
            unit=self.what.unit,
            beta=None if strength is None else getattr(self.weights, strength),
        )
