"""Rewards of all prefixes of a batch from one forward, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rgtg_logits.errors import RewardModelError
from rgtg_logits.reward_model import RewardModel, RewardModelConfig, output_scores, token_scores
from rgtg_logits.train.losses import position_mask
from rgtg_logits.train.objectives import PrefixRewards
from rgtg_logits.train.packing import SharedPromptReader


class RewardReader:
    """Reads rewards as `RewardModel.score_tokens` does, from a model that is trained.

    Args:
        model: The model, or an adapter on it.
        kind: How its rewards are read; see `RewardModelConfig`.
        num_tokens: Size of the tokenizer's vocabulary. A language model may have more logits, which mean nothing.
        shared_prompts: Reads both answers of a pair behind one prompt, for the kind "causal"; None for rows of their
            own.
        max_next: Whether to read the largest reward one token later as well, for the kind "vocabulary".
        sharded: Whether the weights will be sharded over processes (FSDP, ZeRO-3), so that no layer can be applied by
            itself.

    Raises:
        RewardModelError: If the model is not of that kind.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        num_tokens: int,
        shared_prompts: SharedPromptReader | None = None,
        *,
        max_next: bool = False,
        sharded: bool = False,
    ) -> None:
        self._kind = kind
        self._num_tokens = num_tokens
        self._max_next = max_next
        self.shared_prompts = shared_prompts
        reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
        self.head = reward_model.head if kind == "causal" else None
        self._backbone = reward_model.backbone
        self._output_layer: nn.Linear | None = None
        if kind == "vocabulary" and not max_next and not sharded:
            self._output_layer = _split_output_layer(reward_model)

    def read(
        self,
        forward: Callable[..., Any],
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"],
        start: Int[Tensor, " rows"],
        **options: Any,
    ) -> tuple[PrefixRewards, Any]:
        """Runs the model once.

        Args:
            forward: The model, or the wrapper that distributes it.
            input_ids: Token ids, padded on the right.
            attention_mask: 1 for text, 0 for padding.
            start: Index of the first token of each answer. With "log_ratio", log-probabilities are summed from there.
            options: Further arguments of the model.

        Returns:
            The rewards in float32 or better, because differences of rewards are small, and the model's own output.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.head is not None:
            return self._read_head(self.head, partial(forward, **options), tokens)
        if self._output_layer is not None:
            # Logits of a whole vocabulary take more memory than all else, and half of the time of a small model: only
            # the logits of the tokens themselves are computed.
            with _captured_outputs(self._backbone) as outputs:
                output = forward(**tokens, **options, logits_to_keep=1)
            states = outputs[0].last_hidden_state
            return PrefixRewards(output_scores(self._output_layer, states, input_ids, attention_mask)), output
        output = forward(**tokens, **options)
        scores = token_scores(output.logits, input_ids, attention_mask, log_softmax=self._kind == "log_ratio")
        if self._kind == "vocabulary":
            # No gradient, because the best next token only makes a target.
            max_next = output.logits.detach()[..., : self._num_tokens].amax(-1).float() if self._max_next else None
            return PrefixRewards(scores, max_next), output
        answer_mask = position_mask(start, attention_mask.sum(1), input_ids.shape[1])
        return PrefixRewards(scores.masked_fill(~answer_mask, 0.0).cumsum(1)), output

    def _read_head(
        self, head: nn.Module, forward: Callable[..., Any], tokens: dict[str, Tensor]
    ) -> tuple[PrefixRewards, Any]:
        output: Any = None

        def forward_rewards(**arguments: Tensor) -> Float[Tensor, "rows length"]:
            nonlocal output
            with _captured_outputs(head) as outputs:
                output = forward(**arguments)
            return _token_rewards(outputs, arguments["input_ids"])

        if self.shared_prompts is None:
            rewards = forward_rewards(**tokens)
        else:
            rewards = self.shared_prompts.rewards(forward_rewards, **tokens)
        return PrefixRewards(rewards), output


def _split_output_layer(reward_model: RewardModel) -> nn.Linear | None:
    """The linear layer from states to logits; None where logits are more than that, or cannot be left out."""
    if "logits_to_keep" not in signature(reward_model.model.forward).parameters:
        return None
    parts = reward_model.split_output_layer()
    return None if parts is None else parts[1]


@contextmanager
def _captured_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collects the outputs of a module by a forward hook.

    A classifier's own output holds the logit of one token only, but its head is applied to every token.
    """
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _token_rewards(outputs: list[Tensor], input_ids: Tensor) -> Float[Tensor, "rows length"]:
    """The reward of every prefix, from the outputs of the head."""
    expected = (*input_ids.shape, 1)
    if len(outputs) != 1 or outputs[0].shape != expected:
        raise RewardModelError(
            f"Expected the model to apply its reward head once, to every token (shape {expected}), but it was applied "
            f"{len(outputs)} times, to shapes {[tuple(output.shape) for output in outputs]}. Use an architecture whose "
            "…ForSequenceClassification head reads every token."
        )
    rewards = outputs[0].squeeze(-1)
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
