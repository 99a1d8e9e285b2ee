"""The forward of a reward model: of a backbone and a scalar head, or of a whole language model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from rgtg_logits.errors import RewardModelError
from rgtg_logits.reward_model.prepacked import prepacked
from rgtg_logits.reward_model.state import Layers

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of a forward's cache: since transformers 5.24, before it, and before it of recurrent models."""

_PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Types of weights that are multiplied by numbers of the same type."""


class Forward:
    """Runs the module of a model that computes the states of tokens.

    Args:
        model: The whole model.
        module: The model itself, or the part of it whose forward is run.

    Attributes:
        backbone: The model's transformer, without any head.

    Raises:
        RewardModelError: If the model has no table of token embeddings.
    """

    _output = "last_hidden_state"

    def __init__(self, model: PreTrainedModel, module: PreTrainedModel) -> None:
        self.model = model
        self.backbone = cast(PreTrainedModel, model.base_model)
        _check_embeddings(self.backbone)
        self._module = module
        self._layers = Layers(module)
        self._call: Callable[..., Any] = module
        self._parameters = frozenset(signature(module.forward).parameters)
        cache_names = [name for name in _CACHE_NAMES if name in self._parameters]
        self._cache_name = cache_names[0] if cache_names and "use_cache" in self._parameters else None

    @property
    def device(self) -> torch.device:
        """The device that token ids have to be on."""
        embeddings = self.backbone.get_input_embeddings()
        # Offloaded weights are on no device until accelerate's hook moves them to the one where it runs the layer.
        execution_device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
        if execution_device is not None:
            return torch.device(execution_device)
        return cast(Tensor, embeddings.weight).device

    def compiled(self, **options: Any) -> Forward:
        """The same, with a forward compiled by `torch.compile`."""
        twin = copy.copy(self)
        twin._call = torch.compile(self._module, **options)
        return twin

    def prepacked(self) -> Forward:
        """The same, with the weights of its linear layers prepacked; see the module `prepacked`."""
        twin = copy.copy(self)
        twin._module = prepacked(self._module)
        twin._layers = Layers(twin._module)
        twin._call = twin._module
        return twin

    def on(self, twins: Mapping[nn.Module, nn.Module]) -> Forward:
        """The same kind of forward on copies of the model's layers; not compiled.

        Args:
            twins: A copy of each layer, by layer.
        """
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, nn.Module) and name != "_call":
                setattr(twin, name, twins[value])
        twin._layers = Layers(twin._module)
        twin._call = twin._module
        return twin

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """The whole model, and the module that is run, which is a part of it unless it is prepacked."""
        return self.model, self._module

    def states(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Int[Tensor, "#batch new"] | None,
        cache: Cache | None,
        *,
        use_cache: bool,
        last: int | Int[Tensor, " kept"] | None,
    ) -> tuple[Float[Tensor, "batch kept width"], Cache | None]:
        """Runs the model once over the new tokens; see `RewardModel.hidden_states`."""
        num_new = input_ids.shape[1]
        keep: int | Tensor = 0 if last is None else last
        if isinstance(keep, Tensor) and len(keep) == num_new:
            # All states, in an order that afterwards nobody could tell from the tokens' own.
            keep = 0
        output = self._run(
            input_ids, position_ids, cache, attention_mask=attention_mask, use_cache=use_cache, logits_to_keep=keep
        )
        states = getattr(output, self._output)
        # Backbones, and some language models, do not take logits_to_keep: they return all states.
        if isinstance(last, Tensor) and states.shape[1] == num_new:
            states = states[:, last.to(states.device)]
        elif isinstance(last, int):
            states = states[:, -last:]
        new_cache = self._cache_of(output) if use_cache else None
        return states.to(self.device), new_cache

    def _run(self, input_ids: Tensor, position_ids: Tensor | None, cache: Cache | None, **arguments: Any) -> Any:
        """The forward's output; arguments that the forward does not take are left out."""
        if (cache is not None or arguments["use_cache"]) and self._cache_name is None:
            raise TypeError(f"{type(self._module).__name__} takes no cache.")
        if self._cache_name is not None and cache is not None:
            arguments[self._cache_name] = cache
        if position_ids is not None:
            arguments["position_ids"] = position_ids
        accepted = {name: value for name, value in arguments.items() if name in self._parameters}
        module = self._layers.in_evaluation_mode()
        call = self._call if module is self._module else module
        try:
            return call(input_ids, **accepted)
        except RuntimeError as error:
            dtypes = weight_dtypes(module)
            if len(dtypes) < 2 or "dtype" not in str(error):
                raise
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise RewardModelError(
                f"Expected layers that take each other's output, but the weights of the reward model are in {names}: "
                f"{error}. Convert them to one type (model.to(torch.bfloat16)), or generate under torch.autocast."
            ) from error

    def _cache_of(self, output: Any) -> Cache | None:
        cache = getattr(output, self._cache_name) if self._cache_name else None
        if not isinstance(cache, Cache):
            raise TypeError(f"{type(self._module).__name__} returns no cache that can be reordered.")
        return cache


class BackboneForward(Forward):
    """A backbone alone; a state is a last hidden state."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, cast(PreTrainedModel, model.base_model))


class ClassifierForward(BackboneForward):
    """A causal backbone followed by one linear layer with one output.

    Raises:
        RewardModelError: If the model is built in another way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.head = _head(model)

    def rewards(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        """The head's output for states; see `RewardModel.rewards`."""
        weight = _active_weight(self.head)
        # A model that is spread over devices ends on another device than it starts on.
        hidden = hidden if weight.is_meta else hidden.to(weight.device)
        return self.head(_cast(hidden, weight)).squeeze(-1).float().to(self.device)

    def cast_states(self, head: nn.Module) -> None:
        """Lets a twin of the head take states of another precision, as `rewards` does."""
        # Another dict, because a twin shares the layer's own.
        head._forward_pre_hooks = OrderedDict(head._forward_pre_hooks)
        head.register_forward_pre_hook(lambda _, inputs: (_cast(inputs[0], _active_weight(head)), *inputs[1:]))


class LanguageModelForward(Forward):
    """A language model; the state of a token is the logits of the next one, as the model's own forward returns them.

    Raises:
        RewardModelError: If the model is no language model.
    """

    _output = "logits"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, model)
        if not model.can_generate() or model.get_output_embeddings() is None:
            raise RewardModelError(
                "Expected a …ForCausalLM model, because the kinds 'vocabulary' and 'log_ratio' read logits, but got "
                f"{type(model).__name__}. Load one with AutoModelForCausalLM, or read a model with a scalar head with "
                "config=RewardModelConfig(kind='causal')."
            )

    @property
    def num_next_tokens(self) -> int:
        """Number of logits."""
        layer = cast(Any, self.model.get_output_embeddings())
        return int(layer.out_features if hasattr(layer, "out_features") else layer.weight.shape[0])


def _check_embeddings(backbone: PreTrainedModel) -> None:
    try:
        has_embeddings = isinstance(getattr(backbone.get_input_embeddings(), "weight", None), Tensor)
    except (NotImplementedError, AttributeError):
        has_embeddings = False
    if not has_embeddings:
        raise RewardModelError(
            f"Expected a decoder with one table of token embeddings, but {type(backbone).__name__} has none. "
            "Use a reward model of another architecture."
        )


def token_scores(
    logits: Float[Tensor, "batch read vocab"],
    input_ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
    *,
    log_softmax: bool,
) -> Float[Tensor, "batch length"]:
    """The logit, or log-probability, of each token given the tokens before it, in float32.

    Args:
        logits: Logits of the next token at each token; those of the last column are not needed.
        input_ids: The tokens.
        mask: 1 for text, 0 for padding on either side.
        log_softmax: Whether to turn logits into log-probabilities.

    Returns:
        One number for each token; 0 at padding and at the first token, which has nothing before it.
    """
    previous_logits = logits[:, : input_ids.shape[1] - 1]
    # First gathered, then float32, because all logits in float32 may take more memory than the model.
    scores = previous_logits.gather(-1, input_ids[:, 1:, None])[..., 0].float()
    if log_softmax:
        scores = scores - previous_logits.float().logsumexp(-1)
    return at_tokens(scores, mask)


def output_scores(
    layer: nn.Linear,
    states: Float[Tensor, "batch length width"],
    input_ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
) -> Float[Tensor, "batch length"]:
    """The logits of `token_scores`, from last hidden states: computed for the tokens of the text alone."""
    next_ids = input_ids[:, 1:]
    scores = (states[:, :-1].float() * layer.weight[next_ids].float()).sum(-1)
    if layer.bias is not None:
        scores = scores + layer.bias[next_ids].float()
    return at_tokens(scores, mask)


def at_tokens(
    scores: Float[Tensor, "batch before"], mask: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length"]:
    """Moves scores of next tokens to those tokens; 0 at padding and at the first token of a text.

    Args:
        scores: Score of the next token at each token but the last.
        mask: 1 for text, 0 for padding on either side.
    """
    has_both = (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    return nn.functional.pad(scores.masked_fill(~has_both, 0.0), (1, 0))


def weight_dtypes(module: nn.Module) -> list[torch.dtype]:
    """The types of numbers that a module's weights have, besides those of quantised weights."""
    return sorted({weight.dtype for weight in module.parameters()} & _PRECISIONS, key=str)


def _active_weight(head: nn.Module) -> Tensor:
    """The weight that a head multiplies by; of several heads in a PEFT wrapper, that of the active one."""
    heads = getattr(head, "modules_to_save", None)
    if isinstance(heads, nn.ModuleDict) and not getattr(head, "disable_adapters", False):
        active = [name for name in getattr(head, "active_adapters", ()) if name in heads]
        if active:
            head = heads[active[0]]
    return next(head.parameters())


def _cast(hidden: Tensor, weight: Tensor) -> Tensor:
    """States in the precision of a weight; as they are if the weight is quantised."""
    return hidden.to(weight.dtype) if weight.dtype in _PRECISIONS else hidden


def _head(model: PreTrainedModel) -> nn.Module:
    """The one linear layer that follows the backbone."""
    backbone = model.base_model
    # Modules without weights, such as dropout, do nothing here; any second one with weights would be ignored.
    heads = [child for child in model.children() if child is not backbone and list(child.parameters())]
    if backbone is model or len(heads) != 1 or next(heads[0].parameters()).shape[0] != model.config.num_labels:
        raise RewardModelError(
            "Expected a decoder-only …ForSequenceClassification model, a causal backbone followed by one linear layer "
            f"with one output, but {type(model).__name__} is built otherwise. Use a decoder-only reward model, loaded "
            "with AutoModelForSequenceClassification and num_labels=1. To read the next-token logits of a language "
            "model as rewards, pass config=RewardModelConfig(kind='vocabulary'), or kind='log_ratio' for its "
            "log-probabilities."
        )
    return heads[0]
