"""Views of a reward model: the same weights, run or configured in another way."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from typing_extensions import Self

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model.forward import Forward
from rgtg_logits.reward_model.state import Layers, set_attention, twins_with_own_config


class ViewsMixin:
    """The methods of `RewardModel` that return a view of it; the model itself is not changed."""

    model: nn.Module
    backbone: PreTrainedModel
    text_config: Any
    _inner: PreTrainedModel
    _layers: Layers
    _forward: Forward

    def with_own_config(self) -> Self:
        """The same model, on the same weights, with a copy of the config, of which a change reaches nobody else.

        The forward stays of its kind, but is not compiled.
        """
        return self._on(twins_with_own_config(self.model, *self._forward.modules))

    def with_attention(self, name: str) -> Self:
        """The same model, on the same weights, in evaluation mode and with another implementation of attention.

        A view with a config of its own: the model and its config are not changed. It follows changes of the weights,
        but not those of the layers, the active adapters or the mode; make it anew when `state()` changes. Nobody checks
        that an architecture computes the same with this attention; some do not (capped scores, ALiBi), so compare.

        Args:
            name: A name in transformers' `AttentionInterface`, or "eager".

        Raises:
            InvalidArgumentError: If no attention of this name is registered.
            RewardModelError: If a layer has a forward of its own, which reads the layer's own config.
        """
        if name != "eager" and name not in ALL_ATTENTION_FUNCTIONS:
            raise InvalidArgumentError(
                f"Expected the name of an attention of transformers, but got {name!r}. Register it with "
                "transformers.AttentionInterface.register first."
            )
        twins = twins_with_own_config(self.model, *self._forward.modules)
        set_attention(twins, name)
        return self._on(twins)

    def _on(self, twins: Mapping[nn.Module, nn.Module]) -> Self:
        """The same reading of rewards on copies of all layers."""
        twin = copy.copy(self)
        twin.model = twins[self.model]
        twin._layers = Layers(twin.model)
        twin._inner = cast(PreTrainedModel, twins[self._inner])
        twin.text_config = twin._inner.config.get_text_config()
        twin._forward = self._forward.on(twins)
        twin.backbone = twin._forward.backbone
        return twin

    def compiled(self, **options: Any) -> Self:
        """The same model, on the same weights, with a forward compiled by `torch.compile(…, **options)`."""
        return self._with_forward(self._forward.compiled(**options))

    def prepacked(self) -> Self:
        """The same model, with a second copy of its linear layers' weights, laid out for the processor's instructions.

        For inference without gradients. The copy follows changes of the weights, except those that are written through
        `.data`, which leave no trace.

        Raises:
            InvalidArgumentError: If it is not on the CPU, or torch or the processor cannot do it.
        """
        return self._with_forward(self._forward.prepacked())

    def _with_forward(self, forward: Forward) -> Self:
        twin = copy.copy(self)
        twin._forward = forward
        return twin
