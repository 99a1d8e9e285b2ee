"""The scoring engine: rewards of the continuations of token rows, by one cached forward per request.

Between requests it keeps a memory of the previous rows, never a step count: other prompts, permuted, duplicated,
dropped or rolled-back rows cost a recomputation of what changed and nothing else.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CompileConfig

from rgtg_logits.errors import ContextLengthError, NonFiniteRewardError, VocabularyError
from rgtg_logits.padding import PADDING
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.options import check_options
from rgtg_logits.scorers.engine.probe import choose_strategy
from rgtg_logits.scorers.engine.request import ScoreRequest, empty_row_error, rows_to_compute, scatter_rows
from rgtg_logits.scorers.engine.strategies import STRATEGIES
from rgtg_logits.scorers.engine.strategy import Step, Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tracker import CachePlan, PrefixTracker
from rgtg_logits.scorers.engine.truncation import truncate_left


@dataclass(frozen=True)
class _PreviousStep:
    """The previous step, from which the next one may be predicted.

    Attributes:
        request: Its request.
        active: The rows that were computed; None if all.
        children: The candidates in the flat tree of the computed rows; None if it was not flat or is no longer cached.
        longest: Number of tokens of the longest prefix.
        is_steady: Whether every row continued its own, none was a duplicate, and none was truncated.
    """

    request: ScoreRequest
    active: Int[Tensor, " active"] | None
    children: Int[Tensor, "active k"] | None
    longest: int
    is_steady: bool


class ScoringEngine:
    """Answers requests by one forward over [new tokens of the prefixes | token trees].

    Args:
        reward_model: The model.
        strategy: See `EngineOptions`, for this and the other options.
        speculate: Whether to take the ordinary step before looking at the rows.
        on_overflow: "error" or "truncate_left".
        max_tokens_per_forward: Largest number of tokens in one forward.
        compile: Whether to compile the ordinary step.
        prepack: Whether to lay out the weights beforehand.
        trees: Whether continuations may have several tokens, and rows padding inside.

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
        compile: bool | CompileConfig = False,
        prepack: bool = False,
        trees: bool = False,
    ) -> None:
        check_options(strategy, on_overflow, max_tokens_per_forward, compile, prepack)
        self.reward_model = reward_model
        self._prepack = prepack
        self.strategy = choose_strategy(reward_model, trees=trees) if strategy == "auto" else strategy
        self.on_overflow = on_overflow
        self._compile = compile
        self._max_tokens = max_tokens_per_forward
        self._strategy = self._make_strategy()
        self._state: list[object] | None = reward_model.state()
        # On a CPU a look at the rows is free, so that speculation could only lose.
        self._speculates = reward_model.device.type != "cpu" if speculate is None else speculate
        self._uniform_length = reward_model.uniform_length or sys.maxsize
        self._tracker = PrefixTracker()
        self._previous: _PreviousStep | None = None
        # The tokenizer's start token goes first, because it is the one that rows begin with.
        tokenizer_bos = getattr(reward_model.tokenizer, "bos_token_id", None)
        self.bos_token_id = reward_model.text_config.bos_token_id if tokenizer_bos is None else tokenizer_bos
        self._warned_of_overflow = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts with an empty cache, and compiles and prepacks anew, because neither can be copied.
        return {**self.__dict__, "_tracker": PrefixTracker(), "_previous": None, "_strategy": None, "_state": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._strategy = self._make_strategy()

    def _make_strategy(self) -> Strategy:
        reward_model = self.reward_model.prepacked() if self._prepack else self.reward_model
        compiled = _compiled(self.reward_model, self._compile)
        return STRATEGIES[self.strategy](reward_model, self._max_tokens, compiled)

    def _follow_model(self) -> None:
        """Forgets all rows if the model computes something else now: what is cached belongs to its former state."""
        state = self.reward_model.state()
        if state != self._state:
            self.reset()
            # Layers and adapters may have changed, of which a prepacked model has copies.
            self._strategy = self._make_strategy()
            self._state = state

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        self._tracker.forget()
        self._strategy.reset()
        self._previous = None

    def cache_bytes(self) -> int:
        """Memory that the cache of the previous rows holds."""
        return self._strategy.cache_bytes()

    @profiled("plan")
    def score(self, request: ScoreRequest) -> Float[Tensor, "batch k"]:
        """Returns rewards (float32, on the model's device); 0 in finished rows.

        The host waits for an accelerator once in an ordinary step, at its end, and twice when rows change places.

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        try:
            # The cache outlives the call, so the caller's inference mode and autocast must not affect it.
            device = request.padded_ids.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._follow_model()
                rewards = self._speculative_step(request)
                return self._planned_step(request) if rewards is None else rewards
        except BaseException:
            # Interrupted in the middle, the cache may no longer match the rows remembered.
            self.reset()
            raise

    def _speculative_step(self, request: ScoreRequest) -> Tensor | None:
        """Takes the ordinary step before knowing that it is one, and checks afterwards (speculative execution).

        In an ordinary step every row has grown by one of its previous candidates. To check first would leave the device
        idle while the host reads the rows; one look at the end tells both whether the prediction was right and whether
        the rewards are finite. A wrong prediction costs one forward and returns None.
        """
        previous = self._previous
        if previous is None or previous.children is None or not self._can_speculate(request, previous):
            return None
        padded_ids = request.padded_ids
        length = previous.request.padded_ids.shape[1]
        active = request if previous.active is None else request.select_rows(previous.active)
        # Ids that the model does not have must not reach its embeddings; they make the prediction wrong below.
        last_id = self.reward_model.vocab_size - 1
        candidates = active.candidates.clamp(max=last_id)
        tokens = active.token_tree.tokens.clamp(max=last_id)
        is_sampled = active.padded_ids[:, -1:] == previous.children.to(padded_ids.device)
        plan = CachePlan(None, length)
        sampled_nodes = is_sampled.int().argmax(-1)
        step = Step(plan, active.padded_ids, TokenTree(tokens), extends=True, sampled_nodes=sampled_nodes)
        rewards = request.rewards_from_states(self._strategy.run(step), candidates)
        # All comparisons stay on the device, and one transfer brings the verdict.
        is_ordinary = (padded_ids[:, :-1] == previous.request.padded_ids).all() & is_sampled.any(-1).all()
        is_ordinary &= (active.candidates == candidates).all() & (active.token_tree.tokens == tokens).all()
        is_ordinary &= (request.finished == previous.request.finished).all()
        was_right, is_finite = torch.stack([is_ordinary, rewards.isfinite().all()]).tolist()
        if not was_right:
            # The prefix in the cache is still right, but the tree behind it is another one now.
            self._strategy.roll_back(length)
            self._previous = replace(previous, children=None)
            return None
        if not is_finite:
            raise self._non_finite_error(step, active, previous.active)
        self._tracker.remember(active.padded_ids)
        self._previous = _PreviousStep(request, previous.active, tokens, previous.longest + 1, is_steady=True)
        return scatter_rows(rewards, len(padded_ids), previous.active, None)

    def _can_speculate(self, request: ScoreRequest, previous: _PreviousStep) -> bool:
        """Whether the request may be an ordinary step, by shapes alone, which need no look at the device."""
        if not self._speculates or not self._strategy.can_roll_back or not request.token_tree.is_flat:
            return False
        batch, length = previous.request.padded_ids.shape
        limit = min(self._uniform_length, self.reward_model.max_length or self._uniform_length)
        has_grown_by_one = request.padded_ids.shape == (batch, length + 1)
        # Each row is one token longer now, and one candidate must still fit.
        return previous.is_steady and has_grown_by_one and previous.longest + 2 <= limit

    def _planned_step(self, request: ScoreRequest) -> Tensor:
        """Looks at the rows, plans, and takes whatever step follows."""
        device = request.padded_ids.device
        # One transfer, because every comparison on the device would make the host wait.
        on_cpu = request.to(torch.device("cpu"))
        self._check_tokens(on_cpu)
        if on_cpu.finished.all():
            return torch.zeros(request.candidates.shape, device=device)
        batch = len(on_cpu.padded_ids)
        rows, duplicates = rows_to_compute(on_cpu)
        whole = on_cpu if rows is None else on_cpu.select_rows(rows)
        active, longest = self._fit_context(whole)
        active_rows = None if rows is None else rows.to(device)
        if longest + active.token_tree.max_depth > self._uniform_length:
            return scatter_rows(self._uncached(active, device, rows), batch, active_rows, duplicates)
        # A sampled token is accepted from the cache only where the tree is flat and nothing was rolled back.
        is_flat = active.token_tree.is_flat
        plan = self._tracker.plan(active.padded_ids)
        extends = plan.kept_length == self._tracker.length
        sampled_nodes = self._sampled_nodes(plan, active.padded_ids) if is_flat and extends else None
        step = Step(
            plan,
            active.padded_ids.to(device),
            active.token_tree.to(device),
            extends=extends,
            sampled_nodes=sampled_nodes,
        )
        rewards = request.rewards_from_states(self._strategy.run(step), active.candidates.to(device))
        if not rewards.isfinite().all():
            raise self._non_finite_error(step, active, rows)
        self._tracker.remember(active.padded_ids)
        children = step.token_tree.tokens if is_flat else None
        # The next step is predicted only from one in which every row kept its place.
        is_steady = plan.source_rows is None and duplicates is None and active is whole
        self._previous = _PreviousStep(request, active_rows, children, longest, is_steady)
        return scatter_rows(rewards, batch, active_rows, duplicates)

    def _uncached(self, active: ScoreRequest, device: torch.device, rows: Tensor | None) -> Tensor:
        """Scores each text by itself, because no cache is valid for texts longer than `uniform_length`."""
        self.reset()
        step = Step(CachePlan(None, 0), active.padded_ids.to(device), active.token_tree.to(device), extends=False)
        states = STRATEGIES["recompute"](self.reward_model).run(step)
        rewards = active.rewards_from_states(states, active.candidates.to(device))
        if not rewards.isfinite().all():
            raise self._non_finite_error(step, active, rows)
        return rewards

    def _sampled_nodes(self, plan: CachePlan, padded_ids: Tensor) -> Int[Tensor, " batch"] | None:
        """The previous candidate by which each row has grown; None unless each has grown by exactly one of them."""
        if self._previous is None or self._previous.children is None or padded_ids.shape[1] != plan.kept_length + 1:
            return None
        children = self._previous.children.cpu()
        if plan.source_rows is not None:
            children = children[plan.source_rows]
        is_sampled = padded_ids[:, -1:] == children
        # argmax finds the first match; a candidate that is listed twice has the same states in both places.
        return is_sampled.int().argmax(-1).to(self.reward_model.device) if is_sampled.any(-1).all() else None

    def _check_tokens(self, on_cpu: ScoreRequest) -> None:
        # An unfinished row without a prefix has its only token in the tree (`VocabularyScorer`).
        empty = ((on_cpu.padded_ids == PADDING).all(-1) & on_cpu.finished).nonzero()[:, 0].tolist()
        if empty:
            raise empty_row_error(empty[0])
        ids = [on_cpu.padded_ids, on_cpu.token_tree.tokens]
        if on_cpu.shared_vocabulary:
            ids.append(on_cpu.candidates)
        largest = max(int(part.max()) for part in ids if part.numel())
        if largest >= self.reward_model.vocab_size:
            raise VocabularyError(
                f"Expected token ids below {self.reward_model.vocab_size}, the size of the reward model's vocabulary, "
                f"but got {largest}: the reward model does not share the base model's tokens. "
                "Pass tokenizer= (the base model's tokenizer) to PartialRewardLogitsProcessor, with a RewardModel that "
                "has its own."
            )

    def _fit_context(self, active: ScoreRequest) -> tuple[ScoreRequest, int]:
        """The request as far as the model can read its rows, and the number of tokens of the longest row."""
        limit = self.reward_model.max_length
        longest = int((active.padded_ids != PADDING).sum(-1).max())
        depth = active.token_tree.max_depth
        if limit is None or longest + depth <= limit:
            return active, longest
        if self.on_overflow == "error":
            raise ContextLengthError(
                f"Expected prefixes of at most {limit} tokens, the context of the reward model, but a prefix and its "
                f"candidate have {longest + depth}. Shorten the prompt, generate fewer tokens, use a reward model with "
                "a longer context, or pass on_overflow='truncate_left' to let it read the end of the text alone."
            )
        self.warn_of_overflow(limit)
        padded_ids = truncate_left(active.padded_ids, limit - depth, self.bos_token_id)
        return replace(active, padded_ids=padded_ids), int((padded_ids != PADDING).sum(-1).max())

    def warn_of_overflow(self, limit: int) -> None:
        """Warns once that the beginning of a text is dropped."""
        if not self._warned_of_overflow:
            warnings.warn(
                f"A text is longer than the {limit} tokens that the reward model can read: from here on it reads the "
                "end alone (on_overflow='truncate_left').",
                stacklevel=2,
            )
        self._warned_of_overflow = True

    def _non_finite_error(self, step: Step, active: ScoreRequest, rows: Tensor | None) -> NonFiniteRewardError:
        """Finds the token by itself, because in a shared forward its NaN reaches the other nodes of the tree."""
        recompute = STRATEGIES["recompute"](self.reward_model)
        candidates = active.candidates.to(step.padded_ids.device)
        row = 0
        slot = 0
        reward = float("nan")
        for row in range(candidates.shape[0]):
            index = torch.tensor([row], device=candidates.device)
            alone = Step(CachePlan(None, 0), step.padded_ids[index], step.token_tree.select(index), extends=False)
            rewards = active.rewards_from_states(recompute.run(alone), candidates[index])[0]
            if not rewards.isfinite().all():
                slot = int((~rewards.isfinite()).int().argmax())
                reward = float(rewards[slot])
                break
        original_row = row if rows is None else int(rows[row])
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {original_row} with token {int(candidates[row, slot])} is "
            f"{reward}. The reward model overflows or is damaged: load it in float32 or bfloat16, and check its "
            "weights."
        )


def _compiled(reward_model: RewardModel, compile: bool | CompileConfig) -> RewardModel | None:
    if not compile:
        return None
    # As in generate: "reduce-overhead" records a CUDA graph, so that a step is one launch.
    config = CompileConfig(dynamic=False) if compile is True else compile
    return reward_model.compiled(**config.to_dict())
