"""The probe: finds the cheapest strategy that is exact, on the loaded model and by numbers alone.

Architectures differ in how they treat a custom mask or a cache, some silently, so names prove nothing. The probe runs
each strategy over a few steps on a few short rows (prompts of two lengths, an extension by a candidate, permuted rows
with other tokens, a rewind, a fork and a newcomer; where needed also continuations of several tokens) and compares the
states with those of plain uncached forwards on single rows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rgtg_logits.errors import RewardModelError, RGTGError
from rgtg_logits.reward_model import RewardModel, positions
from rgtg_logits.scorers.engine.strategies import STRATEGIES
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree

ROW_LENGTH = 13
"""Columns of the probe's rows."""
SHRUNK_WINDOW = 8
"""Attention windows are shrunk to this size while probing, so that rows of a few tokens reach past them."""
LARGEST_WINDOW = 1024
"""Largest window past which rows are probed, if it cannot be shrunk."""
NUM_CANDIDATES = 3
UNSUITABLE = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NameError)
"""Exceptions that a model may raise when a strategy does not suit it."""
_CHOSEN: WeakKeyDictionary[nn.Module, dict[object, str]] = WeakKeyDictionary()
"""Strategies that were chosen, so that a second scorer of a model costs no forward."""
_LOCK = RLock()
_WINDOW_SETTING = re.compile(r"window|chunk|index_topk")
_OTHER_SETTING = re.compile(r"layer|feed_forward")


@torch.no_grad()
def choose_strategy(reward_model: RewardModel, *, trees: bool = False, maskable: bool = False) -> str:
    """Returns the name of the cheapest exact strategy.

    Args:
        reward_model: The model.
        trees: Whether continuations may have several tokens.
        maskable: Whether attention has to be steered by a mask alone, as in a compiled forward.

    Raises:
        RewardModelError: If the model is not causal, or no strategy is exact.
    """
    with _LOCK:
        # By what the model is built of, because an exact strategy stays exact when weights change.
        key = (_kinds(reward_model), reward_model.kind, trees, maskable)
        known = _CHOSEN.setdefault(reward_model.model, {})
        if key not in known:
            # Windows are shrunk on a view, because other threads may be using the model and its config.
            known[key] = _choose(reward_model.with_own_config(), trees, maskable)
        return known[key]


def _kinds(reward_model: RewardModel) -> tuple[object, ...]:
    """Everything but the weights that decides how a model computes."""
    layers = tuple(type(layer) for layer in reward_model.model.modules())
    settings = tuple(_window_settings(reward_model).items())
    attention = getattr(reward_model.text_config, "_attn_implementation", None)
    return layers, settings, attention, reward_model.dtype, reward_model.device


def _choose(reward_model: RewardModel, trees: bool, maskable: bool) -> str:
    rows = _probe_rows(reward_model, ROW_LENGTH)
    _check_model(reward_model, rows[0])
    names = [name for name in STRATEGIES if name != "tree_attention" or not maskable]
    windows = _window_settings(reward_model)
    # A setting that a model read from its config when it was built cannot be shrunk now: rows must reach past it.
    fixed = [size for name, size in windows.items() if not _is_read_at_forward(reward_model, name, rows[0])]
    batches = [rows]
    if fixed and max(fixed) <= LARGEST_WINDOW:
        batches.append(_probe_rows(reward_model, max(fixed) + ROW_LENGTH))
    elif fixed:
        # No affordable row shows what the window does, so nothing that depends on it is trusted.
        names = ["recompute"]
    with _shrunk_windows(reward_model, windows):
        return _cheapest_exact(reward_model, names, batches, trees)


def _check_model(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    try:
        check_causal(reward_model, row)
        if reward_model.kind == "causal":
            check_head(reward_model, row)
    except (RGTGError, torch.OutOfMemoryError):
        raise
    except UNSUITABLE as error:
        raise RewardModelError(
            f"Expected a decoder that reads token ids, but {type(reward_model.model).__name__} cannot be run on some: "
            f"{type(error).__name__}: {error} Use a reward model of another architecture."
        ) from error


def _cheapest_exact(reward_model: RewardModel, names: list[str], batches: list[Tensor], trees: bool) -> str:
    reasons = {}
    for name in names:
        try:
            results = [probe(reward_model, STRATEGIES[name](reward_model), rows, trees=trees) for rows in batches]
        except torch.OutOfMemoryError:
            raise
        except UNSUITABLE as error:
            reasons[name] = f"{type(error).__name__}: {error}"
            continue
        if all(error <= tolerance for error, tolerance in results):
            return name
        reasons[name] = f"relative error {max(error for error, _ in results):.1g}"
    raise RewardModelError(
        f"Expected a reward model whose rewards are the same with and without a cache, but for "
        f"{type(reward_model.model).__name__} no strategy of running it is exact ({reasons}). "
        "Load it with attn_implementation='sdpa' or 'eager', or use another architecture."
    )


def check_causal(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    """Rejects models whose reward of a prefix changes when text is added behind it.

    Raises:
        RewardModelError: If the model looks ahead.
    """
    half = row.shape[0] // 2
    whole_states = _uncached_states(reward_model, row)
    error = _relative_error(whole_states[:half], _uncached_states(reward_model, row[:half]))
    if not error <= _tolerance(reward_model.dtype):
        raise RewardModelError(
            f"Expected a causal reward model, whose reward of a prefix does not depend on what follows, but the states "
            f"of {type(reward_model.model).__name__} change by {error:.1%} when text is added: it is an encoder, or "
            "its activations are quantised, which ties the rows of a batch together. Use a decoder-only reward model, "
            "and quantise weights alone (in 8 bit with bitsandbytes: llm_int8_threshold=0.0)."
        )


def check_head(reward_model: RewardModel, row: Int[Tensor, " length"]) -> None:
    """Rejects models whose output depends on more than the last state and a linear head.

    Raises:
        RewardModelError: If the reward of the row is not what the model itself returns for it.
    """
    # Without padding, so that the model's output is that of the last token.
    output = reward_model.in_evaluation_mode()(input_ids=row[None]).logits[0, 0].float()
    reward = reward_model.rewards(_uncached_states(reward_model, row)[-1])
    if not bool((output - reward).abs() <= _tolerance(reward_model.dtype) * (1 + output.abs())):
        raise RewardModelError(
            f"Expected a model whose output is a linear head on the last token's state, but "
            f"{type(reward_model.model).__name__} returns {float(output):.4g} where that head gives "
            f"{float(reward):.4g}. Use a reward model of another architecture."
        )


def probe(
    reward_model: RewardModel, strategy: Strategy, rows: Int[Tensor, "2 length"], *, trees: bool = False
) -> tuple[float, float]:
    """Returns the relative error of a strategy over the probe's steps, and the error that rounding explains.

    In half precision rounding is large, and a single flip of a mixture of experts larger, but a wrong mask may spoil
    few states. So there the upper quartile decides, and is compared with the difference that the plain model itself
    shows for the same text in another shape: with more text behind it.
    """
    # The strategy keeps its cache over all steps, as in a generation.
    errors = []
    noise = []
    for prefixes, token_tree in _probe_steps(rows.cpu(), reward_model.vocab_size, trees):
        states = strategy.run([prefix.numpy() for prefix in prefixes], token_tree.to(reward_model.device))
        strategy.commit([prefix.numpy() for prefix in prefixes], token_tree)
        continuations, lengths = token_tree.continuations()
        for row, prefix in enumerate(prefixes):
            for slot in range(continuations.shape[1]):
                text = torch.cat([prefix, continuations[row, slot, : int(lengths[row, slot])]])
                expected = _uncached_states(reward_model, text.to(rows.device))[-1]
                errors.append(_relative_error(states[row, slot], expected))
                longer = _uncached_states(reward_model, torch.cat([text, rows[0, :5].cpu()]).to(rows.device))
                noise.append(_relative_error(longer[len(text) - 1], expected))
    # In float32 rounding is so small that every single state counts.
    if torch.finfo(reward_model.dtype).bits >= 32:
        return max(errors), _tolerance(reward_model.dtype)
    tolerance = max(2 * torch.finfo(reward_model.dtype).eps, 4 * _upper_quartile(noise))
    return _upper_quartile(errors), tolerance


def _upper_quartile(values: list[float]) -> float:
    return float(torch.tensor(values).quantile(0.75))


def _probe_steps(
    rows: Int[Tensor, "2 length"], vocab_size: int, trees: bool
) -> Iterator[tuple[list[Int[Tensor, " length"]], TokenTree]]:
    """Yields the prefixes of consecutive steps and their token trees."""
    # Of two lengths, and tokens change from step to step, so that a stale cache shows.
    prompts = [rows[0], rows[1, 3:]]
    candidates = (rows[:, -NUM_CANDIDATES:] + 1) % vocab_size
    extended = [torch.cat([prompts[0], candidates[0, 1:2]]), torch.cat([prompts[1], candidates[1, :1]])]
    permuted = [torch.cat([extended[1], candidates[0, :2]]), torch.cat([extended[0], candidates[1, :2]])]
    # One goes back, two share their past, and one is new.
    joined = [extended[1][:-2], extended[0][:-2], torch.cat([permuted[0], candidates[0, :1]]), rows[1, :4]]
    yield prompts, TokenTree(candidates)
    yield extended, TokenTree(candidates)
    yield permuted, TokenTree(candidates.flip(1))
    yield joined, TokenTree(torch.cat([candidates, candidates.flip(1)]))
    if trees:
        a, b, c = candidates[0].tolist()
        token_tree = TokenTree.from_continuations([[[a], [a, b, a], [c, b]], [[b, c], [b, a], [a]]])
        yield permuted, token_tree
        yield [torch.cat([permuted[0], torch.tensor([a, b])]), torch.cat([permuted[1], torch.tensor([b])])], token_tree


def _window_settings(reward_model: RewardModel) -> dict[str, int]:
    """Settings of the config that bound what a token sees, and that rows of a few tokens do not reach."""
    limit = reward_model.max_length or sys.maxsize
    return {
        name: value
        for name, value in vars(reward_model.text_config).items()
        if _WINDOW_SETTING.search(name)
        and not _OTHER_SETTING.search(name)
        and type(value) is int
        and SHRUNK_WINDOW < value < limit
    }


def _is_read_at_forward(reward_model: RewardModel, name: str, row: Int[Tensor, " length"]) -> bool:
    """Whether a model reads a setting of its config at every forward, so that shrinking it changes states."""
    if name == "sliding_window":
        # The masks built here shrink alike, and the layer types show whether any layer uses it.
        return True
    before = _uncached_states(reward_model, row)
    with _shrunk_windows(reward_model, [name]):
        try:
            return _relative_error(_uncached_states(reward_model, row), before) > 0
        except UNSUITABLE:
            return False


@contextmanager
def _shrunk_windows(reward_model: RewardModel, names: Iterable[str]) -> Iterator[None]:
    """Shrinks the named settings of the config, from which most models build their masks at every forward."""
    config = reward_model.text_config
    original = {name: getattr(config, name) for name in names}
    # Layers hand the window that they read when they were built to their attention function.
    holders = [
        (layer, name)
        for layer in reward_model.model.modules()
        for name in original
        if name == "sliding_window" and layer.__dict__.get(name) == original[name]
    ]
    try:
        for name in original:
            setattr(config, name, SHRUNK_WINDOW)
        for layer, name in holders:
            setattr(layer, name, SHRUNK_WINDOW)
        yield
    finally:
        for name, value in original.items():
            setattr(config, name, value)
        for layer, name in holders:
            setattr(layer, name, original[name])


def _probe_rows(reward_model: RewardModel, length: int) -> Int[Tensor, "2 length"]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, max(3, reward_model.vocab_size - 1), (2, length), generator=generator)
    # Not the pad token, at which the model would stop reading.
    ids[ids == reward_model.pad_token_id] = 1
    return ids.to(reward_model.device)


def _uncached_states(reward_model: RewardModel, row: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    mask = torch.ones_like(row)[None]
    return reward_model.hidden_states(row[None], mask, positions(mask))[0][0]


def _relative_error(states: Tensor, reference: Tensor) -> float:
    difference = float((states.float() - reference.float()).norm())
    size = float(reference.float().norm())
    # A head that starts from zeros gives nothing but zeros, and they are exact. NaN stays an error.
    if difference == 0:
        return 0.0
    return difference / size if size != 0 else float("inf")


def _tolerance(dtype: torch.dtype) -> float:
    """Rounding error to allow: a few units in the last place, more than enough to tell it from a wrong mask."""
    return max(1e-4, 8 * torch.finfo(dtype).eps)
