"""The scoring engine: rewards of the continuations of token rows, by one cached forward per request.

Between requests it keeps a memory of sequences, never a step count: whatever rows come, in whatever order, a row costs
what of its text is not remembered.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CompileConfig

from rgtg_logits.errors import NonFiniteRewardError, RGTGError
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.options import check_options
from rgtg_logits.scorers.engine.previous_step import PreviousStep
from rgtg_logits.scorers.engine.probe import choose_strategy
from rgtg_logits.scorers.engine.readable import context_error, unreadable_rows
from rgtg_logits.scorers.engine.request import ScoreRequest, distinct_rows, node_counts, unpadded_rows
from rgtg_logits.scorers.engine.strategies import STRATEGIES
from rgtg_logits.scorers.engine.strategy import Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.truncation import truncate_left


class ScoringEngine:
    """Answers requests by one forward over [new tokens of the prefixes | token trees].

    Args:
        reward_model: The model.
        strategy: See `EngineOptions`, for this and the other options.
        speculate: Whether to take the ordinary step before looking at the rows.
        on_overflow: "error" or "truncate_left".
        max_tokens_per_forward: Largest number of tokens in one forward.
        cache_tokens: Largest number of tokens to remember.
        compile: Whether to compile the ordinary step.
        prepack: Whether to lay out the weights beforehand.
        trees: Whether continuations may have several tokens.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no strategy is exact on it.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        strategy: str = "auto",
        speculate: bool | None = None,
        on_overflow: str = "error",
        max_tokens_per_forward: int | None = None,
        cache_tokens: int | None = None,
        compile: bool | CompileConfig = False,
        prepack: bool = False,
        trees: bool = False,
    ) -> None:
        check_options(strategy, on_overflow, max_tokens_per_forward, cache_tokens, compile, prepack)
        self.reward_model = reward_model
        self._prepack = prepack
        if strategy == "auto":
            strategy = choose_strategy(reward_model, trees=trees, maskable=bool(compile))
        self.strategy = strategy
        self.on_overflow = on_overflow
        self._compile = compile
        self._max_tokens = max_tokens_per_forward
        self._cache_tokens = cache_tokens
        self._strategy = self._make_strategy()
        self._state: list[object] | None = reward_model.state()
        # On a CPU a look at the rows is free, so that speculation could only lose.
        self._speculates = reward_model.device.type != "cpu" if speculate is None else speculate
        self._uniform_length = reward_model.uniform_length or sys.maxsize
        self._longest = min(self._uniform_length, reward_model.max_length or self._uniform_length)
        self._previous: PreviousStep | None = None
        # The tokenizer's start token goes first, because it is the one that rows begin with.
        tokenizer_bos = getattr(reward_model.tokenizer, "bos_token_id", None)
        self.bos_token_id = reward_model.text_config.bos_token_id if tokenizer_bos is None else tokenizer_bos
        self._warned_of_overflow = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts with an empty cache, and compiles and prepacks anew, because neither can be copied.
        return {**self.__dict__, "_previous": None, "_strategy": None, "_state": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._strategy = self._make_strategy()

    def _make_strategy(self) -> Strategy:
        reward_model = self.reward_model.prepacked() if self._prepack else self.reward_model
        return STRATEGIES[self.strategy](
            reward_model,
            max_tokens=self._max_tokens,
            cache_tokens=self._cache_tokens,
            compiled=_compiled(self.reward_model, self._compile),
        )

    def _follow_model(self) -> None:
        """Forgets all rows if the model computes something else now: what is cached belongs to its former state."""
        state = self.reward_model.state()
        if state != self._state:
            self.reset()
            # Layers and adapters may have changed, of which views and a prepacked model have copies.
            self._strategy = self._make_strategy()
            self._state = state

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        self._strategy.reset()
        self._previous = None

    def cache_bytes(self) -> int:
        """Memory that the cache of the remembered sequences holds."""
        return self._strategy.cache_bytes()

    def score(self, request: ScoreRequest) -> Float[Tensor, "batch k"]:
        """Returns rewards (float32, on the model's device); 0 in finished rows.

        The host waits for an accelerator once in an ordinary step, at its end, and twice when rows change places. After
        an error the other rows are remembered as they were.

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        rewards, errors = self._score(request, raises=True)
        if errors:
            raise errors[min(errors)]
        return rewards

    def score_each(self, request: ScoreRequest) -> tuple[Float[Tensor, "batch k"], dict[int, RGTGError]]:
        """The same, with the errors of `score` by row; rewards of those rows are 0, and all others are computed."""
        return self._score(request, raises=False)

    @profiled("plan")
    def _score(self, request: ScoreRequest, *, raises: bool) -> tuple[Tensor, dict[int, RGTGError]]:
        # The cache outlives the call, so the caller's inference mode and autocast must not affect it.
        device = self.reward_model.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            self._follow_model()
            rewards = self._speculative_step(request)
            return self._planned_step(request, raises=raises) if rewards is None else (rewards, {})

    def _speculative_step(self, request: ScoreRequest) -> Tensor | None:
        """Takes the ordinary step before knowing that it is one, and checks afterwards (speculative execution).

        In an ordinary step every row has grown by one of its previous candidates. To check first would leave the device
        idle while the host reads the rows; one look at the end tells both whether the prediction was right and whether
        the rewards are finite. A wrong prediction costs one forward and returns None.
        """
        previous = self._previous
        if previous is None or previous.children is None or not previous.may_precede(request, self._longest):
            return None
        padded_ids, former_ids = request.prefixes, previous.request.prefixes
        assert isinstance(padded_ids, Tensor) and isinstance(former_ids, Tensor)
        # Ids that the model does not have must not reach its embeddings; they make the prediction wrong below.
        last_id = self.reward_model.vocab_size - 1
        candidates = previous.computed(request.candidates)
        known_candidates = candidates.clamp(max=last_id)
        tokens = previous.computed(request.token_tree.tokens)
        known_tokens = tokens.clamp(max=last_id)
        is_sampled = previous.computed(padded_ids)[:, -1:] == previous.children.to(padded_ids.device)
        # Whatever comes of it, the nodes of the step before are overwritten.
        self._previous = replace(previous, children=None)
        states = self._strategy.run_ordinary(is_sampled.int().argmax(-1), TokenTree(known_tokens))
        if states is None:
            return None
        rewards = request.rewards_from_states(states, known_candidates)
        # All comparisons stay on the device, and one transfer brings the verdict.
        is_ordinary = (padded_ids[:, :-1] == former_ids).all() & is_sampled.any(-1).all()
        is_ordinary &= (candidates == known_candidates).all() & (tokens == known_tokens).all()
        is_ordinary &= (request.finished == previous.request.finished).all()
        was_right, is_finite = torch.stack([is_ordinary, rewards.isfinite().all()]).tolist()
        if not is_finite:
            self._strategy.discard()
        if not (was_right and is_finite):
            # The prefix in the cache is still right, and the planned step finds out what is wrong.
            return None
        self._strategy.confirm_ordinary()
        self._previous = PreviousStep(request, previous.active, known_tokens, previous.longest + 1, is_committed=False)
        return _scattered(rewards, len(padded_ids), previous.active)

    def _catch_up(self) -> None:
        """Tells the strategy the rows of predicted steps, which only the device knew."""
        previous = self._previous
        if previous is not None and not previous.is_committed:
            assert isinstance(previous.request.prefixes, Tensor)
            rows = unpadded_rows(previous.computed(previous.request.prefixes))
            tree = None if previous.children is None else TokenTree(previous.children.cpu())
            self._strategy.commit(rows, tree)
        self._previous = None

    def _planned_step(self, request: ScoreRequest, *, raises: bool) -> tuple[Tensor, dict[int, RGTGError]]:
        """Looks at the rows, plans, and takes whatever step follows."""
        self._catch_up()
        device = self.reward_model.device
        # One transfer, because every comparison on the device would make the host wait.
        on_cpu = request.to(torch.device("cpu"))
        texts, errors = self._readable(on_cpu)
        rewards = torch.zeros(on_cpu.candidates.shape, device=device)
        running = [row for row in range(len(texts)) if not on_cpu.finished[row] and row not in errors]
        if not running or (errors and raises):
            return rewards, errors
        first, equals = distinct_rows([texts[row] for row in running], _part(on_cpu.token_tree, running))
        rows = [running[place] for place in first]
        tree = _part(on_cpu.token_tree, rows)
        if tree.is_flat and tree.node_counts is None:
            tree = replace(tree, node_counts=node_counts(tree.tokens))
        states, cached = self._states([texts[row] for row in rows], tree)
        active = None if len(running) == len(texts) else torch.tensor(running, device=device)
        if len(rows) < len(running):
            states = states[torch.tensor(equals, device=device)]
        part = request.rewards_from_states(states, request.candidates if active is None else request.candidates[active])
        failed: set[int] = set()
        if not part.isfinite().all():
            bad = (~part.isfinite().all(-1)).nonzero()[:, 0].tolist()
            failed = {equals[place] for place in bad}
            for place in bad:
                row = running[place]
                errors[row] = self._non_finite_error(request, on_cpu, row, texts[row])
                part[place] = 0.0
        self._commit(texts, rows, tree, cached, failed)
        if not errors and len(cached) == len(running):
            self._remember(request, active, tree, longest=max(map(len, texts)))
        return _scattered(part, len(texts), active), errors

    def _states(self, texts: list[np.ndarray], tree: TokenTree) -> tuple[Float[Tensor, "rows k state"], list[int]]:
        """The states of the continuations of some rows, and the rows that the strategy has read."""
        device = self.reward_model.device
        limit = self._uniform_length - tree.max_depth
        # The beginning of a text is not remembered, because there is nothing yet.
        cached = [row for row, text in enumerate(texts) if 0 < len(text) <= limit]
        if len(cached) == len(texts):
            return self._strategy.run(texts, tree.to(device)), cached
        # No cache is valid for texts that are longer than it, so that each is read by itself.
        uncached = [row for row in range(len(texts)) if row not in set(cached)]
        recompute = STRATEGIES["recompute"](self.reward_model, max_tokens=self._max_tokens)
        parts = [(uncached, recompute.run([texts[row] for row in uncached], _part(tree, uncached).to(device)))]
        if cached:
            parts.append((cached, self._strategy.run([texts[row] for row in cached], _part(tree, cached).to(device))))
        states = parts[0][1].new_empty(len(texts), *parts[0][1].shape[1:])
        for rows, part in parts:
            states[torch.tensor(rows, device=device)] = part
        return states, cached

    def _commit(
        self, texts: list[np.ndarray], rows: list[int], tree: TokenTree, cached: list[int], failed: set[int]
    ) -> None:
        if cached:
            bad = [place for place, row in enumerate(cached) if row in failed]
            self._strategy.commit([texts[rows[row]] for row in cached], _part(tree, cached), bad)

    def _remember(self, request: ScoreRequest, active: Tensor | None, tree: TokenTree, *, longest: int) -> None:
        """Remembers a step in which each row was computed by itself, if the next one can be predicted from it."""
        can_predict = self._speculates and self._strategy.can_predict and not self._warned_of_overflow
        if can_predict and tree.is_flat and isinstance(request.prefixes, Tensor):
            children = tree.tokens.to(self.reward_model.device)
            self._previous = PreviousStep(request, active, children, longest, is_committed=True)

    def _readable(self, on_cpu: ScoreRequest) -> tuple[list[np.ndarray], dict[int, RGTGError]]:
        """The rows as far as the model can read them, and the errors of those that it cannot."""
        texts = on_cpu.texts()
        errors = unreadable_rows(on_cpu, texts, self.reward_model.vocab_size)
        limit = self.reward_model.max_length
        if limit is None:
            return texts, errors
        depth = on_cpu.token_tree.max_depth
        finished = on_cpu.finished.tolist()
        for row, text in enumerate(texts):
            if finished[row] or len(text) + depth <= limit:
                continue
            if self.on_overflow == "error":
                errors.setdefault(row, context_error(len(text) + depth, limit))
            else:
                self.warn_of_overflow(limit)
                texts[row] = truncate_left(text, limit - depth, self.bos_token_id)
        return texts, errors

    def warn_of_overflow(self, limit: int) -> None:
        """Warns once that the beginning of a text is dropped."""
        if not self._warned_of_overflow:
            warnings.warn(
                f"A text is longer than the {limit} tokens that the reward model can read: from here on it reads the "
                "end alone (on_overflow='truncate_left').",
                stacklevel=2,
            )
        self._warned_of_overflow = True

    def _non_finite_error(
        self, request: ScoreRequest, on_cpu: ScoreRequest, row: int, text: np.ndarray
    ) -> NonFiniteRewardError:
        """Finds the token by itself, because in a shared forward its NaN reaches the other nodes of the tree."""
        device = self.reward_model.device
        tree = _part(on_cpu.token_tree, [row]).to(device)
        states = STRATEGIES["recompute"](self.reward_model).run([text], tree)
        rewards = request.rewards_from_states(states, on_cpu.candidates[row : row + 1].to(device))[0]
        slot = int((~rewards.isfinite()).int().argmax())
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {row} with token {int(on_cpu.candidates[row, slot])} is "
            f"{float(rewards[slot])}. The reward model overflows or is damaged: load it in float32 or bfloat16, and "
            "check its weights."
        )


def _part(tree: TokenTree, rows: Sequence[int]) -> TokenTree:
    return tree if len(rows) == len(tree.tokens) else tree.select(torch.tensor(rows))


def _scattered(part: Float[Tensor, "active k"], batch: int, active: Tensor | None) -> Float[Tensor, "batch k"]:
    """Rewards of all rows from those that were computed; 0 in the others."""
    if active is None:
        return part
    return torch.zeros(batch, part.shape[1], device=part.device).index_copy(0, active, part)


def _compiled(reward_model: RewardModel, compile: bool | CompileConfig) -> RewardModel | None:
    if not compile:
        return None
    # As in generate: "reduce-overhead" records a CUDA graph, so that a step is one launch.
    config = CompileConfig(dynamic=False) if compile is True else compile
    return reward_model.compiled(**config.to_dict())
