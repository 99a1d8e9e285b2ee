"""The state of a model: what its rewards depend on besides the text, and how to read it in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from rgtg_logits.errors import RewardModelError
from rgtg_logits.reward_model.rotations import forget_length, remember_length

_ADAPTER_SETTINGS = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""Attributes of PEFT's layers that decide which adapters take part in a forward."""

_FORWARDS = ("forward", "_old_forward")
"""Attributes in which a layer's forward is replaced, by accelerate's hooks among others."""


class Layers:
    """The layers of a model, listed once, and anew when one was replaced, because the tree takes long to walk.

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._list()

    def _list(self) -> None:
        self._layers = list(self._module.modules())
        self._children = [layer._modules for layer in self._layers]
        self._weights = [layer._parameters for layer in self._layers if layer._parameters]
        self._adapters = [layer.__dict__ for layer in self._layers if "_active_adapter" in layer.__dict__]
        self._remembers_length = any(remember_length(layer) for layer in self._layers)
        self._structure = self._current_structure()

    def _current_structure(self) -> list[nn.Module | None]:
        return [child for children in self._children for child in children.values()]

    def _refresh(self) -> None:
        # Modules are compared by identity.
        if self._current_structure() != self._structure:
            self._list()

    def state(self) -> list[object]:
        """Everything that changes when the model begins to compute something else; equal lists mean equal rewards.

        Each weight counts by its version counter, which every in-place operation increments (an optimizer step,
        `load_state_dict`, a merge), and by its address, which changes with the tensor. The layers themselves, the
        active adapters and the attention implementation count as well. A write through `Tensor.data` leaves no trace.
        """
        self._refresh()
        weights = [weight for layer in self._weights for weight in layer.values() if weight is not None]
        settings = [copy.copy(layer.get(name)) for layer in self._adapters for name in _ADAPTER_SETTINGS]
        attention = getattr(getattr(self._module, "config", None), "_attn_implementation", None)
        return [attention, *self._structure, *_versions(weights), *_addresses(weights), *settings]

    def in_evaluation_mode(self) -> nn.Module:
        """The model itself if it is in evaluation mode, or else a twin in evaluation mode on the same weights.

        A model that is being trained keeps its mode, also for other threads: nothing is switched over and back. A model
        that remembers the longest text it has read gets a twin each time, which has read none.

        Raises:
            RewardModelError: If a layer in training mode has a forward of its own that is tied to the layer.
        """
        self._refresh()
        if self._remembers_length or any(layer.training for layer in self._layers):
            return evaluation_twins(self._module)[self._module]
        return self._module


def _versions(weights: Sequence[Tensor]) -> list[int]:
    try:
        return [weight._version for weight in weights]
    except RuntimeError:
        # Weights made in inference mode have no version counter, and no in-place change outside of that mode.
        return [0 if weight.is_inference() else weight._version for weight in weights]


def _addresses(weights: Sequence[Tensor]) -> list[int]:
    try:
        return [weight.data_ptr() for weight in weights]
    except RuntimeError:
        # Tensor subclasses, as of quantised weights, have no storage of their own.
        return [id(weight) for weight in weights]


def evaluation_twins(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """Shallow copies of all layers of a model, by layer, in evaluation mode.

    Raises:
        RewardModelError: If a layer in training mode has a forward of its own that is tied to the layer.
    """
    twins = shallow_twins(module)
    for layer, twin in twins.items():
        twin.training = False
        if remember_length(layer):
            forget_length(twin)
        if layer.training and _is_tied(layer, twin):
            raise RewardModelError(
                f"Expected a reward model in evaluation mode, because the forward of its {type(layer).__name__} was "
                "replaced by a function that cannot be run in another mode than the layer's, but it is in training "
                "mode. Call model.eval() first."
            )
    return twins


def _is_tied(layer: nn.Module, twin: nn.Module) -> bool:
    """Whether a layer's forward was replaced by a function that its twin cannot run on itself."""
    return "forward" in layer.__dict__ and twin.__dict__["forward"] is layer.__dict__["forward"]


def twins_with_own_config(*modules: nn.Module) -> dict[nn.Module, nn.Module]:
    """Shallow copies of all layers of models, by layer, whose configs can be changed without changing the models'."""
    twins = shallow_twins(*modules)
    copied: dict[int, Any] = {}
    for layer, twin in twins.items():
        for name, value in layer.__dict__.items():
            if isinstance(value, PretrainedConfig):
                # One memo for all, so that a config within another one stays the same object as in the layers that
                # hold it.
                twin.__dict__[name] = copy.deepcopy(value, copied)
    return twins


def set_attention(twins: Mapping[nn.Module, nn.Module], name: str) -> None:
    """Switches copies with their own configs to another attention, in evaluation mode.

    Raises:
        RewardModelError: If a layer has a forward of its own that is tied to the layer and not to its copy.
    """
    for layer, twin in twins.items():
        twin.training = False
        if _is_tied(layer, twin):
            raise RewardModelError(
                f"Expected a reward model whose layers run with another attention, but the forward of its "
                f"{type(layer).__name__} was replaced by a function that reads the layer's own config. Use the model "
                "with its own attention."
            )
        for value in twin.__dict__.values():
            if isinstance(value, PretrainedConfig):
                # Reaches the configs inside of it too.
                value._attn_implementation = name


def shallow_twins(*modules: nn.Module) -> dict[nn.Module, nn.Module]:
    """Shallow copies of trees of modules, by module: other objects with the same parameters, buffers and hooks."""
    twins = {layer: copy.copy(layer) for module in modules for layer in module.modules()}
    for layer, twin in twins.items():
        children = {name: None if child is None else twins[child] for name, child in layer._modules.items()}
        twin.__dict__["_modules"] = children
        # A compiled call would run the layer and not its twin.
        twin.__dict__["_compiled_call_impl"] = None
        for name in _FORWARDS:
            if name in layer.__dict__:
                twin.__dict__[name] = _rebound(layer.__dict__[name], layer, twin)
    return twins


def _rebound(function: Any, layer: nn.Module, twin: nn.Module) -> Any:
    """A function that is tied to a layer, tied to its twin instead; the function itself if it is tied otherwise."""
    if isinstance(function, MethodType) and function.__self__ is layer:
        return MethodType(function.__func__, twin)
    if isinstance(function, partial) and function.args and function.args[0] is layer:
        return partial(function.func, twin, *function.args[1:], **function.keywords)
    return function
