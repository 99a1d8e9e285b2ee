"""Stops a training whose losses, gradients or weights are not finite, before such weights replace a good model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from rgtg_logits.errors import NonFiniteRewardError


class FiniteTrainingMixin(Trainer):
    """A trainer that goes on only while its losses and gradients are finite, and saves finite weights only."""

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """One forward and backward, as in `Trainer`.

        Raises:
            NonFiniteRewardError: If the loss is not finite.
        """
        loss = super().training_step(*args, **options)
        if not torch.isfinite(loss).all():
            raise self._error("loss")
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, as in `Trainer`.

        Raises:
            NonFiniteRewardError: If a weight is not finite; what was saved before is left as it is.
        """
        if not all(map(_is_finite, self.model.parameters())):
            raise self._error("weights")
        super().save_model(output_dir, _internal_call)

    def _error(self, what: str) -> NonFiniteRewardError:
        if self.args.fp16 or self.model.dtype == torch.float16:
            cause = "numbers in float16 overflow. Train in bfloat16 (--bf16) or float32"
        else:
            cause = (
                f"the learning rate of {self.args.learning_rate:g} is too high. Lower --learning_rate, or look for "
                "rows with extreme rewards or margins"
            )
        return NonFiniteRewardError(
            f"Expected finite {what}, but got NaN or infinity in step {self.state.global_step + 1}, so the training is "
            f"stopped and nothing more is saved. The likely cause: {cause}."
        )


class FiniteGradients(TrainerCallback):
    """Stops a training before an optimiser step with gradients that are not finite."""

    def __init__(self, trainer: FiniteTrainingMixin) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        """Checks the gradients."""
        # With loss scaling, an overflow is met by a smaller scale, and the step is left out.
        if args.fp16:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None and not _is_sharded(p.grad)]
        if gradients and not all(torch.isfinite(norm) for norm in torch._foreach_norm(gradients)):
            raise self._trainer._error("gradients")


def _is_finite(parameter: nn.Parameter) -> bool:
    # Quantised weights are integers, and of sharded ones no process holds all.
    if not parameter.is_floating_point() or parameter.is_meta or _is_sharded(parameter):
        return True
    return bool(torch.isfinite(parameter.detach()).all())


def _is_sharded(tensor: Tensor) -> bool:
    return type(tensor.data if isinstance(tensor, nn.Parameter) else tensor) is not Tensor
