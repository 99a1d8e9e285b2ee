"""Whether a model's rewards are those of prefixes, and its own: found by the numbers of three tiny forwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rgtg_logits.errors import RewardModelError

if TYPE_CHECKING:
    from rgtg_logits.reward_model.model import RewardModel

_LENGTH = 6
"""Tokens of the texts."""


@torch.no_grad()
def check_causality(reward_model: RewardModel) -> None:
    """Refuses a model whose states of a prefix depend on what follows, or whose own output is another number.

    Encoders (BERT, DeBERTa) and bidirectional decoders load as sequence classifiers of one output too, and would give
    numbers that mean nothing. A model without memory (on the meta device) is not checked.

    Raises:
        RewardModelError: If the model is such a one.
    """
    if reward_model.device.type == "meta":
        return
    # Two texts that differ in their last token.
    texts = _texts(reward_model)
    states, _ = reward_model.hidden_states(texts, torch.ones_like(texts), None)
    change = _difference(states[0, :-1], states[1, :-1])
    tolerance = max(1e-4, 16 * torch.finfo(states.dtype).eps)
    name = type(reward_model._inner).__name__
    if not change <= tolerance:
        raise RewardModelError(
            f"Expected a causal reward model, whose reward of a prefix stays when text is added, but that of {name} "
            f"changes (its states by {change:.0%}): it reads in both directions, as encoders do. It cannot guide by "
            "itself: let it label answers (`rgtg pairs --reward`, then `rgtg train`), or pass a function that calls it "
            "on whole texts, as in WeightedScorer([function], [1.0], tokenizer=tokenizer)."
        )
    if reward_model.kind != "causal":
        return
    # By itself, because some quantised models let the rows of a batch change each other.
    states, _ = reward_model.hidden_states(texts[:1], torch.ones_like(texts[:1]), None, last=1)
    rewards = reward_model._classifier.rewards(states[:, -1])
    own = reward_model.in_evaluation_mode()(input_ids=texts[:1]).logits[:, 0].to(rewards.device)
    # A reward near 0 is a difference of larger numbers.
    size = max(float(own.abs()), float(states[0, -1].float().norm()) * 1e-2)
    if not float((rewards - own.float()).abs()) <= 10 * tolerance * size:
        raise RewardModelError(
            f"Expected the model's own output to be its scalar head on the state of the last token, but {name} gives "
            f"{float(own):.4g} where that is {float(rewards):.4g}: something comes between. Use a model of an "
            "architecture that transformers ships, without changes."
        )


def _texts(reward_model: RewardModel) -> Tensor:
    size = reward_model.vocab_size
    ids = (torch.arange(2 * _LENGTH) * 7 + 3) % size
    pad = reward_model.pad_token_id
    ids[ids == pad] = (pad or 0) + 1 if (pad or 0) + 1 < size else 0
    texts = ids[:_LENGTH].repeat(2, 1)
    texts[1, -1] = ids[-1]
    return texts.to(reward_model.device)


def _difference(first: Float[Tensor, "tokens state"], second: Float[Tensor, "tokens state"]) -> float:
    """The largest relative difference of two states."""
    first, second = first.float(), second.float()
    return float(((first - second).norm(dim=-1) / first.norm(dim=-1).clamp(min=1e-12)).max())
