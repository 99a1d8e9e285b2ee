"""Rotary embeddings that depend on the length of the text: their limits, and how each text gets its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_BY_LENGTH = ("longrope", "su", "dynamic")
"""Types of rotary embeddings that rotate all tokens of a text differently when it grows."""


def uniform_length(config: Any) -> int | None:
    """Length up to which rotary embeddings do not depend on the length; see `RewardModel.uniform_length`."""
    lengths = []
    for rope in _ropes(config):
        if _type(rope) in _BY_LENGTH:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            lengths.append(original or config.max_position_embeddings)
    return min(lengths, default=None)


def context_length(config: Any) -> int | None:
    """Number of tokens that a model reads; None without a limit.

    With dynamic NTK, `max_position_embeddings` is the length of the training, which the factor extends.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    types = [_type(rope) for rope in _ropes(config) if _type(rope) is not None]
    if length is None or not types or set(types) != {"dynamic"}:
        return length
    return int(length * min(rope.get("factor") or 1.0 for rope in _ropes(config) if _type(rope) is not None))


def remember_length(layer: nn.Module) -> bool:
    """Whether a layer remembers the longest text so far, and rotates shorter ones like that (dynamic NTK)."""
    return "max_seq_len_cached" in layer.__dict__ and "dynamic" in str(layer.__dict__.get("rope_type"))


def forget_length(twin: nn.Module) -> None:
    """Lets a shallow copy of such a layer begin anew, as a fresh model does; the layer itself is not changed."""
    # Other dicts, because a shallow copy shares the layer's own.
    twin._buffers = dict(twin._buffers)
    for name in [*twin.__dict__, *twin._buffers]:
        if name.endswith("original_inv_freq"):
            current = name.replace("original_inv_freq", "inv_freq")
            setattr(twin, current, getattr(twin, name).to(getattr(twin, current).device))
        elif name.endswith("max_seq_len_cached"):
            setattr(twin, name, twin.original_max_seq_len)


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # The settings are one dict, or hold one for each type of layer.
    yield settings
    yield from (value for value in settings.values() if isinstance(value, dict))


def _type(rope: dict[str, Any]) -> str | None:
    return rope.get("rope_type") or rope.get("type")
