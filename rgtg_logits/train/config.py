"""The training arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from rgtg_logits.data_formats import NAMES, mapped_columns
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES, Objective
from rgtg_logits.reward_model import RewardModelConfig
from rgtg_logits.train.objectives import LossSettings


@dataclass
class PartialRewardConfig(RewardConfig):
    """TRL's `RewardConfig` (and so `TrainingArguments`) with an objective for reward models that score prefixes.

    Unlike TRL's, its defaults work on a machine without an accelerator: mixed precision in bfloat16, TRL's default, is
    switched on only where the device supports it, and a CPU computes in float32 unless `bf16` says otherwise.

    Args:
        objective: The training objective. From preference pairs: "partial_bt" (Bradley-Terry on every prefix pair;
            PARGS, arXiv 2406.07780), "full_bt" (Bradley-Terry on the finished answers, TRL's own loss), "farma" (the
            same, with the constraint that every prefix is as good as its best next token; arXiv 2502.04517) and "arm"
            (Bradley-Terry on log-probabilities of finished answers; GenARM, arXiv 2410.08193). From answers with a
            reward each: "value" (the expected reward of every prefix; arXiv 2310.17022), "cumulative" (the same, with
            larger weights for later prefixes; RAD, arXiv 2310.09520) and "soft_value" (the soft value
            log E[exp(soft_value_beta · reward)], which leads to the optimum of KL-regularised RLHF). `losses.py` has
            the equations.
        kind: The kind of checkpoint: "causal" (a scalar head), "vocabulary" (a language model whose next-token logits
            are rewards: guidance costs one forward for any number of candidates) or "log_ratio" (a language model whose
            log-probabilities are rewards). By default the usual kind of the objective.
        soft_value_beta: For "soft_value": strength of the KL-regularised optimum, in nats per unit of the data's
            rewards, > 0. A larger one leads further from the base model, and needs more data.
        soft_value_clip: For "soft_value": how far, in nats, a target may exceed the prediction before its loss
            continues as a straight line, > 0. With 5 nearly no target does; a smaller one is steadier, but biased
            towards the mean.
        td_lambda: For "value" and "soft_value": λ of the λ-returns that prefixes are fitted to, from 0 to 1. 1 is the
            reward of the finished answer. A smaller λ mixes in the model's own predictions for the prefixes that
            follow, up to about 1 / (1 - td_lambda) tokens ahead: less noise, but bias while the model is wrong.
            Evaluation always takes 1.
        arm_beta: For "arm": nats of preference per nat of log-probability, > 0. The paper takes 0.05 for whole answers;
            1 makes the sum of log-probabilities itself the reward.
        farma_weight: For "farma": weight of the constraint on unfinished prefixes, ≥ 0. 0 trains on finished answers
            only.
        shared_prompt: Whether to read both answers of a pair in one row, behind one copy of the prompt (sequence
            packing with a 4D attention mask). It gives the same rewards with fewer tokens, which pays where prompts are
            longer than answers. The first batch shows whether a model can be read like this; if not, it is read as
            usual, with a warning. For pairs and the kind "causal".
        dataset_format: The format of all data: "auto" recognises well-known preference sets by their columns, a name
            chooses one (`rgtg_logits.data_formats.FORMATS` is the table). `rgtg data` shows what is read.
        columns: Columns of the data under other names, as a mapping or as words: `["prompt=question", "chosen=best"]`.
            "prompt=" says that there is no prompt.
        resume_from_checkpoint: The folder of a checkpoint, or true for the newest complete one in the output folder, or
            the beginning if there is none yet.

    Raises:
        InvalidArgumentError: If the objective is unknown, it cannot train that kind, or a number is out of range.
    """

    objective: str = field(
        default="partial_bt",
        metadata={
            "help": "Training objective. From preference pairs: 'partial_bt' (Bradley-Terry on every prefix of a pair, "
            "for guided decoding), 'full_bt' (Bradley-Terry on finished answers, an ordinary reward model), 'farma' "
            "(full_bt, with every prefix as good as its best next token), 'arm' (Bradley-Terry on log-probabilities). "
            "From answers with a reward each: 'value' (expected reward of every prefix), 'cumulative' (the same, with "
            "larger weights for later prefixes), 'soft_value' (leads to the optimum of KL-regularised RLHF)."
        },
    )
    kind: str | None = field(
        default=None,
        metadata={
            "help": "Kind of checkpoint: 'causal' (a scalar head), 'vocabulary' (next-token logits are rewards; for "
            "'partial_bt', 'value', 'soft_value', 'cumulative', 'farma') or 'log_ratio' (log-probabilities are "
            "rewards; for 'arm'). If not given: the usual kind of the objective."
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
            "help": "For 'soft_value': how many nats a target may exceed the prediction before its loss continues as a "
            "straight line; above 0."
        },
    )
    td_lambda: float = field(
        default=1.0,
        metadata={
            "help": "For 'value' and 'soft_value': lambda of the returns that prefixes are fitted to, from 0 to 1. 1 "
            "is the reward of the finished answer; less mixes in the model's own predictions, up to about "
            "1 / (1 - td_lambda) tokens ahead."
        },
    )
    arm_beta: float = field(
        default=1.0, metadata={"help": "For 'arm': nats of preference per nat of log-probability; above 0."}
    )
    farma_weight: float = field(
        default=1.0, metadata={"help": "For 'farma': weight of the constraint on unfinished prefixes; 0 is off."}
    )

    shared_prompt: bool = field(
        default=False,
        metadata={
            "help": "Read both answers of a pair in one row behind one copy of the prompt: the same rewards with fewer "
            "tokens. For pairs and the kind 'causal'."
        },
    )

    dataset_format: str = field(
        default="auto",
        metadata={
            "help": "Format of the data: 'auto' recognises well-known preference sets by their columns; `rgtg data` "
            f"shows what is read. Or one of {', '.join(NAMES)}."
        },
    )

    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns under other names, such as prompt=question chosen=best; 'prompt=' says there is no prompt."
        },
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to resume from. Without a value or with 'true': the newest complete one in the output "
            "folder, or the beginning if there is none yet.",
            "nargs": "?",
            "const": "true",
        },
    )

    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={
            "help": "Restore the state of callbacks such as early stopping when training is resumed, so that it ends "
            "as if it had not been interrupted."
        },
    )

    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Use bfloat16 mixed precision. If not given: where the accelerator supports it, unless fp16 is set."
        },
    )

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidArgumentError(
                f"Expected objective to be one of {', '.join(map(repr, OBJECTIVES))}, but got {self.objective!r}. "
                "Choose 'partial_bt' for guided decoding, 'full_bt' for a reward model of finished texts."
            )
        kinds = self.objective_definition.kinds
        self.kind = kinds[0] if self.kind is None else self.kind
        if self.kind not in kinds:
            fitting = [name for name, objective in OBJECTIVES.items() if self.kind in objective.kinds]
            advice = "Leave it out."
            if fitting:
                advice = f"Leave it out, or choose one of the objectives {', '.join(fitting)}."
            raise InvalidArgumentError(
                f"Expected kind to be one of {', '.join(map(repr, kinds))}, which the objective {self.objective!r} can "
                f"train, but got {self.kind!r}. {advice}"
            )
        if self.shared_prompt and (self.objective_definition.data, self.kind) != ("pairs", "causal"):
            raise InvalidArgumentError(
                "Expected shared_prompt for pairs and the kind 'causal', whose scalar head is read at every token, but "
                f"got it for {self.objective!r} and {self.kind!r}. Leave it out."
            )
        self._check_numbers()
        mapped_columns(self.columns)
        # Before the base classes, which check bf16 against the device.
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        try:
            super().__post_init__()
        except ValueError as error:
            if "bf16" not in str(error):
                raise
            raise InvalidArgumentError(
                "Expected a device that computes in bfloat16, because of bf16, but there is none, or fp16 is set too. "
                "Leave out --bf16, or compute in bfloat16 on the CPU with --use_cpu."
            ) from error
        if self.fp16 and self.device.type == "cpu":
            raise InvalidArgumentError(
                "Expected an accelerator, because of fp16 (mixed precision in float16), but there is none. Leave out "
                "--fp16."
            )

    def _check_numbers(self) -> None:
        for name in ("soft_value_beta", "soft_value_clip", "arm_beta", "farma_weight"):
            number = getattr(self, name)
            zero_allowed = name == "farma_weight"
            if not math.isfinite(number) or number < 0 or (number == 0 and not zero_allowed):
                raise InvalidArgumentError(
                    f"Expected {name} to be a finite number {'≥' if zero_allowed else '>'} 0, but got {number}. "
                    "Leave it out for the default."
                )
        if not 0 <= self.td_lambda <= 1 or (
            self.td_lambda < 1 and "td_lambda" not in self.objective_definition.settings
        ):
            raise InvalidArgumentError(
                "Expected td_lambda from 0 to 1, and 1 for other objectives than 'value' and 'soft_value', but got "
                f"{self.td_lambda} for {self.objective!r}. Leave it out for the default."
            )
        if self.center_rewards_coefficient and self.objective not in ("partial_bt", "full_bt"):
            raise InvalidArgumentError(
                "Expected center_rewards_coefficient for the objectives 'partial_bt' and 'full_bt' only, but got "
                f"{self.center_rewards_coefficient} for {self.objective!r}, whose loss has no such term. "
                "Leave it out."
            )

    @property
    def objective_definition(self) -> Objective:
        """The definition of the objective."""
        return OBJECTIVES[self.objective]

    @property
    def loss_settings(self) -> LossSettings:
        """The numbers in the loss."""
        return LossSettings(
            center=self.center_rewards_coefficient,
            beta=self.soft_value_beta,
            clip=self.soft_value_clip,
            arm_beta=self.arm_beta,
            farma_weight=self.farma_weight,
            td_lambda=self.td_lambda,
        )

    @property
    def reward_model(self) -> RewardModelConfig:
        """The checkpoint's `config.rgtg` before any evaluation."""
        strength = self.objective_definition.strength
        return RewardModelConfig(
            kind=self.kind or self.objective_definition.kinds[0],
            objective=self.objective,
            unit=self.objective_definition.unit,
            beta=None if strength is None else getattr(self.loss_settings, strength),
        )
