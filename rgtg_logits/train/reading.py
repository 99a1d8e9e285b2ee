"""How the rewards of a batch are read from one forward, with gradients."""

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
from rgtg_logits.train.losses import between
from rgtg_logits.train.objectives import Reading
from rgtg_logits.train.packing import SharedPrompts


class RewardReader:
    """Reads rewards as `RewardModel.score_tokens` does, from a model that is trained.

    Args:
        model: The model, or an adapter on it.
        kind: How its rewards are read; see `RewardModelConfig`.
        tokens: Number of tokens that there are. A language model may have more logits, which mean nothing.
        shared: Reads both answers of a pair behind one prompt, for the kind "causal"; None for rows of their own.
        best: Whether the largest reward behind every prefix is wanted too, of the kind "vocabulary".
        sharded: Whether processes will share out the weights, so that a layer cannot be read by itself.

    Raises:
        RewardModelError: If the model is not of that kind.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        tokens: int,
        shared: SharedPrompts | None = None,
        *,
        best: bool = False,
        sharded: bool = False,
    ) -> None:
        self._kind, self._tokens, self.shared, self._best = kind, tokens, shared, best
        reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
        self.head = reward_model.head if kind == "causal" else None
        self._backbone, self._layer = reward_model.backbone, None
        if kind == "vocabulary" and not best and not sharded:
            self._layer = _output_layer(reward_model)

    def read(
        self,
        forward: Callable[..., Any],
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"],
        start: Int[Tensor, " rows"],
        **options: Any,
    ) -> tuple[Reading, Any]:
        """Runs the model once.

        Args:
            forward: The model, perhaps wrapped for several processes.
            input_ids: Token ids, padded on the right.
            attention_mask: 1 for text, 0 for padding.
            start: Where each answer begins. With "log_ratio", log-probabilities are summed up from there.
            options: For the model.

        Returns:
            The rewards in float32 or better, because differences of rewards are small, and the model's own output.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.head is not None:
            return self._read_head(self.head, partial(forward, **options), tokens)
        if self._layer is not None:
            # Logits of a whole vocabulary take more memory than all else, and half of the time of a small model.
            with _outputs(self._backbone) as seen:
                output = forward(**tokens, **options, logits_to_keep=1)
            return Reading(output_scores(self._layer, seen[0].last_hidden_state, input_ids, attention_mask)), output
        output = forward(**tokens, **options)
        scores = token_scores(output.logits, input_ids, attention_mask, log_softmax=self._kind == "log_ratio")
        if self._kind == "vocabulary":
            # Whatever is made of the best next token is a target, and has no gradient.
            best = output.logits.detach()[..., : self._tokens].amax(-1).float() if self._best else None
            return Reading(scores, best), output
        answer = between(start, attention_mask.sum(1), input_ids.shape[1])
        return Reading(scores.masked_fill(~answer, 0.0).cumsum(1)), output

    def _read_head(
        self, head: nn.Module, forward: Callable[..., Any], tokens: dict[str, Tensor]
    ) -> tuple[Reading, Any]:
        output: Any = None

        def read(**arguments: Tensor) -> Float[Tensor, "rows length"]:
            nonlocal output
            with _outputs(head) as seen:
                output = forward(**arguments)
            return _token_rewards(seen, arguments["input_ids"])

        rewards = read(**tokens) if self.shared is None else self.shared.rewards(read, **tokens)
        return Reading(rewards), output


def _output_layer(reward_model: RewardModel) -> nn.Linear | None:
    """The layer whose product with the states is the logits; None where they are more, or cannot be left out."""
    if "logits_to_keep" not in signature(reward_model.model.forward).parameters:
        return None
    parts = reward_model.split_output_layer()
    return None if parts is None else parts[1]


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what a part returns, such as what a head says of every token: the model itself returns less."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def _token_rewards(seen: list[Tensor], input_ids: Tensor) -> Float[Tensor, "rows length"]:
    """The reward of every prefix."""
    expected = (*input_ids.shape, 1)
    if len(seen) != 1 or seen[0].shape != expected:
        raise RewardModelError(
            f"Expected the model to apply its reward head once, to every token (shape {expected}), but it was applied "
            f"{len(seen)} times, to shapes {[tuple(output.shape) for output in seen]}. Use an architecture whose "
            "…ForSequenceClassification head reads every token."
        )
    rewards = seen[0].squeeze(-1)
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
