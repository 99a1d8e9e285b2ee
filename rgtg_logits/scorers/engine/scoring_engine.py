"""Reads a reward model behind rows of token ids, one cached forward per question: what every fast scorer is made of.

What is kept between questions is a memory of the last rows, never a step count: other prompts, permuted, duplicated,
dropped or rolled-back rows cost a recomputation of what changed and nothing else.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CompileConfig

from rgtg_logits.errors import (
    ContextLengthError,
    NonFiniteRewardError,
    PaddingError,
    VocabularyError,
)
from rgtg_logits.padding import PADDING
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers.engine.options import check_options
from rgtg_logits.scorers.engine.probe import choose_strategy
from rgtg_logits.scorers.engine.strategies import STRATEGIES, Step, Strategy
from rgtg_logits.scorers.engine.token_tree import TokenTree
from rgtg_logits.scorers.engine.tracker import Plan, PrefixTracker
from rgtg_logits.scorers.engine.truncation import cut_left


@dataclass(frozen=True)
class ScoreRequest:
    """What a scorer wants to know.

    Attributes:
        keys: Token ids of the rows, `PADDING` where padded, on the model's device.
        branches: What may follow each row, on the model's device.
        asked: The candidates that the branches stand for, as the scorer was asked, on the model's device.
        finished: Rows that nobody asks about.
        values: From the state at the end of each branch, and `asked`, to rewards.
        own_ids: Whether `asked` are token ids of the model.
    """

    keys: Int[Tensor, "batch length"]
    branches: TokenTree
    asked: Int[Tensor, "batch k"]
    finished: Tensor
    values: Callable[[Float[Tensor, "rows branches state"], Int[Tensor, "rows k"]], Float[Tensor, "rows k"]]
    own_ids: bool = True


@dataclass(frozen=True)
class _Last:
    """The last step.

    Attributes:
        question: It.
        running: Which of its rows were computed; None if all.
        candidates: The branches of the computed rows, single tokens; None if their states are gone from the cache.
        longest: Tokens of the longest prefix.
        steady: Whether every row continued its own, and none stood for another.
    """

    question: ScoreRequest
    running: Int[Tensor, " running"] | None
    candidates: Int[Tensor, "running k"] | None
    longest: int
    steady: bool


class ScoringEngine:
    """Answers questions about rows with one forward over [what is new of the rows | branches].

    Args:
        reward_model: The model.
        path: See `EngineOptions`, for this and the other options.
        speculate: Whether to take the ordinary step before looking at the rows.
        on_overflow: "error" or "truncate_left".
        max_tokens_per_forward: Most tokens in one forward.
        compile: Whether to compile the ordinary step.
        prepack: Whether to lay out the weights beforehand.
        trees: Whether branches may have several tokens, and rows padding inside.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        RewardModelError: If the model is not causal, or no path is exact on it.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        path: str = "auto",
        speculate: bool | None = None,
        on_overflow: str = "error",
        max_tokens_per_forward: int | None = None,
        compile: bool | CompileConfig = False,
        prepack: bool = False,
        trees: bool = False,
    ) -> None:
        check_options(path, on_overflow, max_tokens_per_forward, compile, prepack)
        self.reward_model = reward_model.prepacked() if prepack else reward_model
        self.path = choose_strategy(reward_model, trees=trees) if path == "auto" else path
        self.on_overflow = on_overflow
        compiled = _compiled(reward_model, compile)
        self._strategy: Strategy = STRATEGIES[self.path](self.reward_model, max_tokens_per_forward, compiled)
        self._speculates = reward_model.device.type != "cpu" if speculate is None else speculate
        self._uniform = reward_model.uniform_length or sys.maxsize
        self._tracker = PrefixTracker()
        self._last: _Last | None = None
        own = getattr(reward_model.tokenizer, "bos_token_id", None)
        self.bos = reward_model.text_config.bos_token_id if own is None else own
        self._warned = False

    def reset(self) -> None:
        """Forgets all rows and frees the cache."""
        self._tracker.forget()
        self._strategy.restart()
        self._last = None

    def cache_bytes(self) -> int:
        """Memory that the cache of the last rows holds."""
        return self._strategy.cache_bytes()

    @profiled("plan")
    def read(self, question: ScoreRequest) -> Float[Tensor, "batch k"]:
        """Rewards (float32, on the model's device); 0 in finished rows.

        An accelerator is waited for once in an ordinary step, at its end, and twice when rows change places.

        Raises:
            PaddingError: If a row is all padding.
            VocabularyError: If the reward model does not have a token.
            ContextLengthError: If a prefix and one candidate are longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        try:
            # The cache outlives the call, and so must not take after the caller's inference mode or autocast.
            device = question.keys.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                rewards = self._guess(question)
                return self._answer(question) if rewards is None else rewards
        except BaseException:
            # Interrupted in the middle, the cache may no longer match the rows remembered.
            self.reset()
            raise

    def _guess(self, question: ScoreRequest) -> Tensor | None:
        """Speculates: takes the ordinary step before knowing that it is one, and looks afterwards.

        The ordinary step: every row is as it was plus one of the candidates it was last asked about. To look first
        would leave the device idle while the host reads the rows; one look at the end tells both whether the guess was
        right and whether the rewards are finite. A wrong guess costs one forward.
        """
        last, keys = self._last, question.keys
        limit = min(self._uniform, self.reward_model.max_length or self._uniform)
        if not self._speculates or not self._strategy.can_take_back or not question.branches.single:
            return None
        if last is None or not last.steady or last.candidates is None:
            return None
        length = last.question.keys.shape[1]
        if keys.shape != (last.question.keys.shape[0], length + 1) or last.longest + 2 > limit:
            return None
        ours = question if last.running is None else _pick(question, last.running)
        known = self.reward_model.vocab_size - 1
        asked, tokens = ours.asked.clamp(max=known), ours.branches.tokens.clamp(max=known)
        drawn = ours.keys[:, -1:] == last.candidates.to(keys.device)
        plan = Plan(None, length)
        step = Step(plan, ours.keys, TokenTree(tokens), extends=True, drawn=drawn.int().argmax(-1))
        rewards = question.values(self._strategy.run(step), asked)
        ordinary = (keys[:, :-1] == last.question.keys).all() & drawn.any(-1).all()
        ordinary &= (ours.asked == asked).all() & (ours.branches.tokens == tokens).all()
        ordinary &= (question.finished == last.question.finished).all()
        guessed, finite = torch.stack([ordinary, rewards.isfinite().all()]).tolist()
        if not guessed:
            self._strategy.take_back(length)
            self._last = replace(last, candidates=None)
            return None
        if not finite:
            raise self._not_finite(step, ours, last.running)
        self._tracker.remember(ours.keys)
        self._last = _Last(question, last.running, tokens, last.longest + 1, steady=True)
        return _whole(rewards, len(keys), last.running, None)

    def _answer(self, question: ScoreRequest) -> Tensor:
        """Looks at the rows, plans, and takes whatever step follows."""
        seen, device = _pick(question, None, device="cpu"), question.keys.device
        self._check(seen)
        if seen.finished.all():
            return torch.zeros(question.asked.shape, device=device)
        computed, copies = _computed(seen)
        ours = seen if computed is None else _pick(seen, computed)
        ours, longest, cut = self._fit(ours)
        running = None if computed is None else computed.to(device)
        if longest + ours.branches.depth > self._uniform:
            return _whole(self._uncached(ours, device, computed), len(seen.keys), running, copies)
        plan = self._tracker.plan(ours.keys)
        extends = plan.keep == self._tracker.length
        drawn = self._drawn(plan, ours.keys, extends) if ours.branches.single else None
        step = Step(plan, ours.keys.to(device), ours.branches.to(device), extends=extends, drawn=drawn)
        rewards = question.values(self._strategy.run(step), ours.asked.to(device))
        if not rewards.isfinite().all():
            raise self._not_finite(step, ours, computed)
        self._tracker.remember(ours.keys)
        candidates = step.branches.tokens if ours.branches.single else None
        steady = plan.parents is None and copies is None and not cut
        self._last = _Last(question, running, candidates, longest, steady)
        return _whole(rewards, len(seen.keys), running, copies)

    def _uncached(self, ours: ScoreRequest, device: torch.device, computed: Tensor | None) -> Tensor:
        """Each text by itself: longer than what the model reads in one and the same way, no cache holds for it."""
        self.reset()
        step = Step(Plan(None, 0), ours.keys.to(device), ours.branches.to(device), extends=False)
        rewards = ours.values(STRATEGIES["recompute"](self.reward_model).run(step), ours.asked.to(device))
        if not rewards.isfinite().all():
            raise self._not_finite(step, ours, computed)
        return rewards

    def _drawn(self, plan: Plan, seen: Tensor, extends: bool) -> Int[Tensor, " batch"] | None:
        """Which of its last candidates each row has grown by, if all have grown by one."""
        if not extends or self._last is None or self._last.candidates is None or seen.shape[1] != plan.keep + 1:
            return None
        siblings = self._last.candidates.cpu()
        same = seen[:, -1:] == (siblings if plan.parents is None else siblings[plan.parents])
        return same.int().argmax(-1).to(self.reward_model.device) if same.any(-1).all() else None

    def _check(self, seen: ScoreRequest) -> None:
        empty = ((seen.keys == PADDING).all(-1) & seen.finished).nonzero()[:, 0].tolist()
        if empty:
            raise no_text(empty[0])
        parts = (seen.keys, seen.branches.tokens, *([seen.asked] if seen.own_ids else []))
        largest = max(int(part.max()) for part in parts if part.numel())
        if largest >= self.reward_model.vocab_size:
            raise VocabularyError(
                f"Expected token ids below {self.reward_model.vocab_size}, the size of the reward model's vocabulary, "
                f"but got {largest}: the reward model does not share the base model's tokens. "
                "Pass tokenizer= (the base model's tokenizer) to PartialRewardLogitsProcessor, with a RewardModel that "
                "has its own."
            )

    def _fit(self, ours: ScoreRequest) -> tuple[ScoreRequest, int, bool]:
        """The rows as far as the model can read them, tokens of the longest, and whether any was cut."""
        limit, lengths = self.reward_model.max_length, (ours.keys != PADDING).sum(-1)
        longest, depth = int(lengths.max()), ours.branches.depth
        if limit is None or longest + depth <= limit:
            return ours, longest, False
        if self.on_overflow == "error":
            raise ContextLengthError(
                f"Expected prefixes of at most {limit} tokens, the context of the reward model, but a prefix and its "
                f"candidate have {longest + depth}. Shorten the prompt, generate fewer tokens, use a reward model with "
                "a longer context, or pass on_overflow='truncate_left' to let it read the end of the text alone."
            )
        self.warn_of_overflow(limit)
        keys = cut_left(ours.keys, limit - depth, self.bos)
        return replace(ours, keys=keys), int((keys != PADDING).sum(-1).max()), True

    def warn_of_overflow(self, limit: int) -> None:
        """Says once that the beginning of a text is left out."""
        if not self._warned:
            warnings.warn(
                f"A text is longer than the {limit} tokens that the reward model can read: from here on it reads the "
                "end alone (on_overflow='truncate_left').",
                stacklevel=2,
            )
        self._warned = True

    def _not_finite(self, step: Step, question: ScoreRequest, running: Tensor | None) -> NonFiniteRewardError:
        """Looks for the guilty token by itself, because through the shared pass its NaN reaches its siblings."""
        alone, row, slot, reward = STRATEGIES["recompute"](self.reward_model), 0, 0, float("nan")
        asked = question.asked.to(step.keys.device)
        for row in range(asked.shape[0]):
            one = torch.tensor([row], device=asked.device)
            states = alone.run(Step(Plan(None, 0), step.keys[one], step.branches.pick(one), extends=False))
            rewards = question.values(states, asked[one])[0]
            if not rewards.isfinite().all():
                slot = int((~rewards.isfinite()).int().argmax())
                reward = float(rewards[slot])
                break
        original = row if running is None else int(running[row])
        return NonFiniteRewardError(
            f"Expected finite rewards, but the reward of row {original} with token {int(asked[row, slot])} is "
            f"{reward}. The reward model overflows or is damaged: load it in float32 or bfloat16, and check its "
            "weights."
        )


def _compiled(reward_model: RewardModel, compile: bool | CompileConfig) -> RewardModel | None:
    if not compile:
        return None
    # As in generate: "reduce-overhead" records a CUDA graph, so that a step is one launch.
    options = CompileConfig(dynamic=False) if compile is True else compile
    return reward_model.compiled(**options.to_dict())


def no_text(row: int) -> PaddingError:
    """What to say of a row that is all padding."""
    return PaddingError(
        f"Expected text in every row, but row {row} holds only the padding token. If that token is also the start of "
        "your text (pad == bos), pass the prompts' attention_mask= to PartialRewardLogitsProcessor. If the base model "
        "is an encoder-decoder, pass processor.for_prompt(…), because its rows do not show the prompt."
    )


def _computed(seen: ScoreRequest) -> tuple[Tensor | None, Tensor | None]:
    """The rows to compute (None: all), and for each running row which of those it equals (None: each is its own)."""
    if len(seen.keys) == 1:
        return None, None
    running = (~seen.finished).nonzero()[:, 0]
    rows = torch.cat([seen.keys, seen.branches.columns()], dim=1)[running]
    copies = _copies(rows)
    if copies is not None:
        # Looked at last, because what is asked about may be a whole vocabulary, and rows of one text are rare.
        copies = _copies(torch.cat([rows, seen.asked[running]], dim=1))
    if copies is None:
        return (running if len(running) < len(seen.keys) else None), None
    first, inverse = copies
    return running[first], torch.stack([running, inverse])


def _copies(rows: Int[Tensor, "batch columns"]) -> tuple[Tensor, Tensor] | None:
    """The first of each set of equal rows, and for every row which of those it equals; None if all rows differ."""
    distinct, inverse = rows.unique(dim=0, return_inverse=True)
    if len(distinct) == len(rows):
        return None
    first = torch.full((len(distinct),), len(rows)).scatter_reduce_(0, inverse, torch.arange(len(rows)), "amin")
    # In order of appearance, so that rows that stay distinct keep their places in the cache.
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def _pick(question: ScoreRequest, rows: Tensor | None, device: str | None = None) -> ScoreRequest:
    """A question about some of the rows, perhaps on another device."""
    keys, branches, asked, finished = question.keys, question.branches, question.asked, question.finished
    if rows is not None:
        keys, branches, asked, finished = keys[rows], branches.pick(rows), asked[rows], finished[rows]
    if device is not None:
        target = torch.device(device)
        keys, branches, asked, finished = keys.to(target), branches.to(target), asked.to(target), finished.to(target)
    return replace(question, keys=keys, branches=branches, asked=asked, finished=finished)


def _whole(rewards: Tensor, batch: int, running: Tensor | None, copies: Tensor | None) -> Tensor:
    """Puts the rewards of the computed rows where they belong; those of finished rows are 0."""
    if running is None:
        return rewards
    if copies is not None:
        running, rewards = copies[0].to(rewards.device), rewards[copies[1].to(rewards.device)]
    return torch.zeros(batch, rewards.shape[1], device=rewards.device).index_copy(0, running, rewards)
