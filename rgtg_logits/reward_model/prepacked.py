"""Linear layers whose weights are laid out beforehand as the processor's matrix instructions take them.

On a CPU, torch hands a product in bfloat16 to oneDNN, which lays the weights out anew every time, and one in float32 to
MKL. Laid out once (weight prepacking, which Inductor does when it freezes a model), a product of a few tokens takes
about half the time. What it costs is a second copy of those weights.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rgtg_logits.errors import InvalidArgumentError

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def prepacked(module: Module) -> Module:
    """The same module, whose linear layers multiply by weights that are laid out already; without gradients.

    It shares everything with the one given, which stays as it is, but for the second copy of those weights. That copy
    follows when weights change, unless they are written to through `.data`, which leaves no trace.

    Args:
        module: On the CPU. Layers that are no plain linear layer, quantised ones say, are run as they are.

    Raises:
        InvalidArgumentError: If it is elsewhere, has no such layer, or torch or the processor cannot do it.
    """
    elsewhere = sorted({parameter.device.type for parameter in module.parameters()} - {"cpu"})
    if elsewhere:
        raise InvalidArgumentError(
            f"Expected a reward model on the CPU for prepack=True, but some of it is on {', '.join(elsewhere)}. "
            "Leave prepack out."
        )
    twins: dict[nn.Module, nn.Module] = {}
    try:
        twin = _twin(module, twins)
        layers = [one for one in twins.values() if isinstance(one, _Prepacked)]
        for layer in layers[:1]:
            layer(layer.weight.new_zeros(1, layer.laid_out.shape[1]))
    except (RuntimeError, AttributeError) as error:
        # The operators are of torch's own, for its compiler; a build without oneDNN has none.
        raise InvalidArgumentError(
            "Expected a torch with oneDNN and a processor with instructions for the type of the weights for "
            f"prepack=True, but got: {error}. Leave prepack out, or load the reward model in float32 or bfloat16."
        ) from error
    if not layers:
        raise InvalidArgumentError(
            "Expected linear layers for prepack=True (torch's Linear or transformers' Conv1D, not quantised), but "
            f"{type(module).__name__} has none. Leave prepack out."
        )
    return cast(Module, twin)


def _twin(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """A shallow copy of a tree of modules: other objects, the same parameters, buffers, hooks and settings."""
    if module not in twins:
        twin = twins[module] = copy.copy(module)
        children = {name: None if child is None else _twin(child, twins) for name, child in module._modules.items()}
        twin.__dict__["_modules"] = children
        kind = _KINDS.get(type(module))
        if kind is not None and type(module.weight) is nn.Parameter:
            twin.__class__ = kind
            cast(_Prepacked, twin).lay_out()
    return twins[module]


class _Prepacked(nn.Module):
    """A layer with a second copy of its weight."""

    weight: Any
    bias: Any
    laid_out: Float[Tensor, "outputs inputs"]

    def forward(self, input: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        if not input.is_cpu:
            # The model was moved since.
            return super().forward(input)
        if self._state() != self._seen:
            self.lay_out()
        return torch.ops.mkldnn._linear_pointwise.default(input, self.laid_out, self.bias, "none", [], "")

    def lay_out(self) -> None:
        """Copies the weight as it is now."""
        self._seen = self._state()
        # Held, so that no other weight can come to lie where it was.
        self._source = self.weight.detach()
        self.laid_out = torch.ops.mkldnn._reorder_linear_weight(self._matrix())

    def _state(self) -> tuple[int, int]:
        """What changes with the weight: where it lies, and how often it was written to."""
        # Past the attribute, whose lookup takes longer than all else here.
        weight = cast(Tensor, self._parameters["weight"])
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def _matrix(self) -> Float[Tensor, "outputs inputs"]:
        return self.weight.detach()


class _PrepackedLinear(_Prepacked, nn.Linear):
    pass


class _PrepackedConv1D(_Prepacked, Conv1D):
    def _matrix(self) -> Float[Tensor, "outputs inputs"]:
        return self.weight.detach().t().contiguous()


_KINDS: dict[type, type[_Prepacked]] = {nn.Linear: _PrepackedLinear, Conv1D: _PrepackedConv1D}
