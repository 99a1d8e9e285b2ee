"""The transformers model inside of wrappers: compiled, parallel, or with an adapter."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from rgtg_logits.errors import RewardModelError


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The module inside of `torch.compile`, `DataParallel` or `DistributedDataParallel`; or the module itself."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def unwrap_adapter(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, with the adapter in its layers; or the model itself.

    Raises:
        RewardModelError: If the adapter is one of prompt learning, outside the model's layers.
    """
    if isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model"):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise RewardModelError(
            "Expected an adapter inside the model's layers, such as LoRA, but got one of learned prompts, which it "
            "puts before every text. Train a LoRA adapter."
        )
    return cast(Any, model).get_base_model()
