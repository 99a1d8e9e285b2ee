"""Finds, on the loaded model and by numbers alone, the cheapest pass that is exact.

Architectures differ in what they do with a custom mask or a cache, some silently, so names prove nothing. The probe
asks each pass a few questions on a small left-padded batch (a prompt, an extension by a candidate, permuted rows with
other tokens, a rewind; where needed also branches of several tokens behind rows with padding inside) and compares the
states with those of plain uncached forwards on unpadded rows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rgtg_logits.errors import RewardModelError, RGTGError
from rgtg_logits.padding import PADDING
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.scorers.engine.strategies import STRATEGIES, Step, Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tracker import PrefixTracker

LENGTH = 13
"""Columns of the probe's rows."""
WINDOW = 8
"""Attention windows are cut to this size while probing, so that rows of a few tokens reach past them."""
LONGEST = 1024
"""Largest window past which rows are probed that cannot be cut."""
_BOUND = re.compile(r"window|chunk|index_topk")
_NO_BOUND = re.compile(r"layer|feed_forward")
CANDIDATES = 3
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NameError)
"""What a model may raise when a pass does not suit it."""


@torch.no_grad()
def choose_strategy(reward_model: RewardModel, *, trees: bool = False) -> str:
    """Names the cheapest exact pass.

    Args:
        reward_model: The model.
        trees: Whether it must also take branches of several tokens, and padding inside the rows.

    Raises:
        RewardModelError: If the model is not causal, or none is exact.
    """
    rows = _rows(reward_model, LENGTH)
    _check(reward_model, rows[0])
    names, bounds = _suitable(reward_model), _bounds(reward_model)
    # What a model took from its config when it was built cannot be cut now: rows have to reach past it as it is.
    fixed = [size for name, size in bounds.items() if not _is_read_again(reward_model, name, rows[0])]
    batches = [rows]
    if fixed and max(fixed) <= LONGEST:
        batches.append(_rows(reward_model, max(fixed) + LENGTH))
    elif fixed:
        names = ["recompute"]
    with _cut(reward_model, bounds):
        return _cheapest(reward_model, names, batches, trees)


def _check(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    try:
        check_causal(reward_model, row)
        if reward_model.kind == "causal":
            check_head(reward_model, row)
    except (RGTGError, torch.OutOfMemoryError):
        raise
    except REFUSALS as refusal:
        raise RewardModelError(
            f"Expected a decoder that reads token ids, but {type(reward_model.model).__name__} cannot be run on some: "
            f"{type(refusal).__name__}: {refusal} Use a reward model of another architecture."
        ) from refusal


def _cheapest(reward_model: RewardModel, names: list[str], batches: list[Tensor], trees: bool) -> str:
    findings = {}
    for name in names:
        try:
            found = [probe(reward_model, STRATEGIES[name](reward_model), rows, trees=trees) for rows in batches]
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as refusal:
            findings[name] = f"{type(refusal).__name__}: {refusal}"
            continue
        if all(error <= allowed for error, allowed in found):
            return name
        findings[name] = f"relative error {max(error for error, _ in found):.1g}"
    raise RewardModelError(
        f"Expected a reward model whose rewards are the same with and without a cache, but for "
        f"{type(reward_model.model).__name__} no way of running it is exact ({findings}). "
        "Load it with attn_implementation='sdpa' or 'eager', or use another architecture."
    )


def check_causal(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    """Refuses models whose reward of a prefix changes when text is added behind it.

    Raises:
        RewardModelError: If the model looks ahead.
    """
    half = row.shape[0] // 2
    error = _relative_error(_plain(reward_model, row)[:half], _plain(reward_model, row[:half]))
    if not error <= _tolerance(reward_model.dtype):
        raise RewardModelError(
            f"Expected a causal reward model, whose reward of a prefix does not depend on what follows, but the states "
            f"of {type(reward_model.model).__name__} change by {error:.1%} when text is added: it is an encoder, or "
            "its activations are quantised, which ties the rows of a batch together. Use a decoder-only reward model, "
            "and quantise weights alone (in 8 bit with bitsandbytes: llm_int8_threshold=0.0)."
        )


def check_head(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    """Refuses models that make their output of more than the last state and a linear head.

    Raises:
        RewardModelError: If the reward of the row is not what the model itself returns for it.
    """
    own = reward_model.model(input_ids=row[None]).logits[0, 0].float()
    read = reward_model.rewards(_plain(reward_model, row)[-1])
    if not bool((own - read).abs() <= _tolerance(reward_model.dtype) * (1 + own.abs())):
        raise RewardModelError(
            f"Expected a model whose output is a linear head on the last token's state, but "
            f"{type(reward_model.model).__name__} returns {float(own):.4g} where that head gives {float(read):.4g}. "
            "Use a reward model of another architecture."
        )


def probe(
    reward_model: RewardModel, chosen: Strategy, rows: Int[Tensor, "2 length"], *, trees: bool = False
) -> tuple[float, float]:
    """The relative error of a pass over its questions, and how much of it rounding explains.

    In half precision rounding is large, and a single flip of a mixture of experts larger, but a wrong mask may spoil
    few states. So there the upper quartile decides, and is held against what the plain model itself makes of the same
    text in another shape: with more text behind it.
    """
    tracker, errors, noise = PrefixTracker(), [], []
    for keys, branches, drawn in _questions(rows, reward_model.vocab_size, trees):
        plan = tracker.plan(keys.cpu())
        states = chosen.run(Step(plan, keys, branches, extends=plan.keep == tracker.length, drawn=drawn))
        tracker.remember(keys.cpu())
        paths, lengths = branches.paths()
        for row in range(2):
            for slot in range(CANDIDATES):
                path = paths[row, slot, : int(lengths[row, slot])]
                text = torch.cat([keys[row][keys[row] != PADDING], path])
                alone = _plain(reward_model, text)[-1]
                errors.append(_relative_error(states[row, slot], alone))
                longer = _plain(reward_model, torch.cat([text, rows[0, :5]]))
                noise.append(_relative_error(longer[len(text) - 1], alone))
    if torch.finfo(reward_model.dtype).bits >= 32:
        return max(errors), _tolerance(reward_model.dtype)
    typical, explained = (float(torch.tensor(values).quantile(0.75)) for values in (errors, noise))
    return typical, max(2 * torch.finfo(reward_model.dtype).eps, 4 * explained)


def _questions(
    rows: Int[Tensor, "2 length"], vocab_size: int, trees: bool
) -> Iterator[tuple[Tensor, TokenTree, Tensor | None]]:
    """Rows one after the other, what may follow them, and which branch was drawn."""
    text = rows.clone()
    text[1, :3] = PADDING
    other = (text[:, -CANDIDATES:] + 1) % vocab_size
    drawn = torch.tensor([1, 0], device=rows.device)
    longer = torch.cat([text, other.gather(1, drawn[:, None])], dim=1)
    odd = torch.cat([longer.flip(0), other[:, :2]], dim=1)
    yield text, TokenTree(other), None
    yield longer, TokenTree(other), drawn
    yield odd, TokenTree(other.flip(1)), None
    yield longer[:, :-2].flip(0), TokenTree(other), None
    if trees:
        one, two, three = other[0].tolist()
        tree = TokenTree.grow([[[one], [one, two, one], [three, two]], [[two, three], [two, one], [one]]])
        tree = tree.to(rows.device)
        torn = torch.cat([longer[:, :-2], other[:, :2]], dim=1)
        torn[0, -2] = PADDING
        yield torn, tree, None
        yield torch.cat([torn, other], dim=1), tree, None


def _bounds(reward_model: RewardModel) -> dict[str, int]:
    """Settings that bound what a token sees, and that rows of a few tokens do not reach."""
    limit = reward_model.max_length or sys.maxsize
    return {
        name: value
        for name, value in vars(reward_model.text_config).items()
        if _BOUND.search(name) and not _NO_BOUND.search(name) and type(value) is int and WINDOW < value < limit
    }


def _is_read_again(reward_model: RewardModel, name: str, row: Int[Tensor, " length"]) -> bool:
    """Whether a model takes a setting from its config at every forward: then it shows when it is cut."""
    if name == "sliding_window":
        # The masks made here are cut alike, and the layer types say whether any layer uses it.
        return True
    before = _plain(reward_model, row)
    with _cut(reward_model, [name]):
        try:
            return _relative_error(_plain(reward_model, row), before) > 0
        except REFUSALS:
            return False


@contextmanager
def _cut(reward_model: RewardModel, names: Iterable[str]) -> Iterator[None]:
    """Cuts the named settings of the config, from which most models make their masks at every forward."""
    config, kept = reward_model.text_config, {}
    try:
        for name in names:
            kept[name] = getattr(config, name)
            setattr(config, name, WINDOW)
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


def _rows(reward_model: RewardModel, length: int) -> Int[Tensor, "2 length"]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, max(3, reward_model.vocab_size - 1), (2, length), generator=generator)
    # Not the pad token, at which the model would stop reading.
    ids[ids == reward_model.pad_token_id] = 1
    return ids.to(reward_model.device)


def _suitable(reward_model: RewardModel) -> list[str]:
    """Passes in order of cost; of the sibling masks, the one that the config's layer types call for."""
    kinds = set(reward_model.layer_types or [])
    if reward_model.sliding_window is None or kinds == {"full_attention"}:
        mask = "siblings"
    elif "full_attention" in kinds:
        mask = "siblings_mixed"
    else:
        mask = "siblings_sliding"
    return [mask, *(name for name in STRATEGIES if not name.startswith("siblings"))]


def _plain(reward_model: RewardModel, row: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    mask = torch.ones_like(row)[None]
    return reward_model.hidden_states(row[None], mask, positions(mask))[0][0]


def _relative_error(states: Tensor, reference: Tensor) -> float:
    difference, size = float((states.float() - reference.float()).norm()), float(reference.float().norm())
    # A head that starts from zeros gives nothing but zeros, and they are exact. NaN stays an error.
    return 0.0 if difference == 0 else difference / size if size != 0 else float("inf")


def _tolerance(dtype: torch.dtype) -> float:
    """Rounding error to allow: a few units in the last place, more than enough to tell it from a wrong mask."""
    return max(1e-4, 8 * torch.finfo(dtype).eps)
