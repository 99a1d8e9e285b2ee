"""Weight prepacking: linear layers whose weights are laid out once for the processor's matrix instructions.

On a CPU, torch hands a product in bfloat16 to oneDNN, which lays the weights out anew every time, and one in float32 to
MKL. With weights that were laid out once, as Inductor does when it freezes a model, a product of a few tokens takes
about half the time. The cost is a second copy of those weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model.state import shallow_twins

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def prepacked(module: Module) -> Module:
    """A twin of a module, whose linear layers multiply by prepacked weights; without gradients.

    The twin shares everything with the module, which is not changed, except for the second copy of the weights of
    linear layers. That copy follows changes of the weights, unless they are written through `.data`, which leaves no
    trace.

    Args:
        module: A module on the CPU. Layers other than plain linear ones, such as quantised layers, run as they are.

    Raises:
        InvalidArgumentError: If the module is on another device, has no linear layer, or torch or the processor cannot
            do it.
    """
    other_devices = sorted({parameter.device.type for parameter in module.parameters()} - {"cpu"})
    if other_devices:
        raise InvalidArgumentError(
            f"Expected a reward model on the CPU for prepack=True, but some of it is on {', '.join(other_devices)}. "
            "Leave prepack out."
        )
    twins = shallow_twins(module)
    layers = []
    for twin in twins.values():
        twin.training = False
        prepacked_class = _PREPACKED_CLASSES.get(type(twin))
        if prepacked_class is not None and type(twin.weight) is nn.Parameter:
            twin.__class__ = prepacked_class
            layers.append(cast(_Prepacked, twin))
            layers[-1].pack()
    if layers:
        with _refusals_explained():
            layers[0](layers[0].weight.new_zeros(1, layers[0].packed_weight.shape[1]))
    else:
        raise InvalidArgumentError(
            "Expected linear layers for prepack=True (torch's Linear or transformers' Conv1D, not quantised), but "
            f"{type(module).__name__} has none. Leave prepack out."
        )
    return cast(Module, twins[module])


@contextmanager
def _refusals_explained() -> Iterator[None]:
    """Says what to do where torch refuses; the operators are its compiler's, and a build without oneDNN lacks them."""
    try:
        yield
    except (RuntimeError, AttributeError) as error:
        raise InvalidArgumentError(
            "Expected a torch with oneDNN and a processor with instructions for the type of the weights for "
            f"prepack=True, but got: {error}. Leave prepack out, or load the reward model in float32."
        ) from error


class _Prepacked(nn.Module):
    """A layer with a second, prepacked copy of its weight."""

    weight: Any
    bias: Any
    packed_weight: Float[Tensor, "outputs inputs"]

    def forward(self, input: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        if not input.is_cpu:
            # The model was moved after prepacking.
            return super().forward(input)
        if self._weight_version() != self._packed_version:
            self.pack()
        return torch.ops.mkldnn._linear_pointwise.default(input, self.packed_weight, self.bias, "none", [], "")

    def pack(self) -> None:
        """Copies the weight as it is now."""
        self._packed_version = self._weight_version()
        # Kept alive, so that no other weight can be allocated at the same address.
        self._source = self.weight.detach()
        with _refusals_explained():
            self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(self._matrix())

    def _weight_version(self) -> tuple[int, int]:
        """Address and version counter of the weight, which change with it."""
        # Not by attribute, because nn.Module's lookup takes longer than all else here.
        weight = cast(Tensor, self._parameters["weight"])
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def _matrix(self) -> Float[Tensor, "outputs inputs"]:
        return self.weight.detach()


class _PrepackedLinear(_Prepacked, nn.Linear):
    pass


class _PrepackedConv1D(_Prepacked, Conv1D):
    def _matrix(self) -> Float[Tensor, "outputs inputs"]:
        return self.weight.detach().t().contiguous()


_PREPACKED_CLASSES: dict[type, type[_Prepacked]] = {nn.Linear: _PrepackedLinear, Conv1D: _PrepackedConv1D}
