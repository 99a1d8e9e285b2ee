"""Decoding under a policy, and what each continuation cost: reward, divergence from the base, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from pairs import up_to_end
from rich.progress import track
from sentiment import SentimentModel
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Policy:
    """A way to decode: which reward model guides, how strongly, and whether it draws or takes the best token.

    Attributes:
        guide: "partial_bt" (PARGS), "full_bt" (ARGS), or None for the base model truncated to its top-k tokens.
        beta: Guidance strength in nats per reward unit.
        greedy: Whether the most probable token of the guided distribution is taken.
    """

    guide: str | None
    beta: float
    greedy: bool

    @property
    def method(self) -> str:
        """Its name in the tables."""
        name = {None: "base", "full_bt": "ARGS", "partial_bt": "PARGS"}[self.guide]
        return f"{name} greedy" if self.greedy else f"{name} sampling"

    @property
    def file(self) -> str:
        """Its name on disk."""
        return f"{self.method.replace(' ', '-')}-{self.beta:g}.json".lower()


class Meter:
    """Measures a processor from outside: exact divergence from the base policy at each step, and seconds.

    KL(pi || pi_ref) is summed over the whole vocabulary at every step and over the steps of every unfinished row. For a
    greedy policy, which is a point mass, it is -log pi_ref of the token taken. `before` must run first of the
    processors, `after` last.
    """

    def __init__(self, prompt_length: int, end: int, *, greedy: bool) -> None:
        self.before = _Call(self._before)
        self.after = _Call(self._after)
        self.kl: Tensor | float = 0.0
        self.processor_seconds = 0.0
        self.own_seconds = 0.0
        self._prompt_length, self._end, self._greedy = prompt_length, end, greedy

    def _before(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        begun = time.perf_counter()
        self._base = scores.log_softmax(-1)
        self._entered = time.perf_counter()
        self.own_seconds += self._entered - begun
        return scores

    def _after(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        left = time.perf_counter()
        self.processor_seconds += left - self._entered
        if self._greedy:
            step = -self._base.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)
        else:
            guided = scores.log_softmax(-1)
            # Tokens that are no candidates have probability 0 and add 0, but 0 · inf is not a number.
            step = (guided.exp() * (guided - self._base)).masked_fill(guided.isneginf(), 0.0).sum(-1)
        finished = (input_ids[:, self._prompt_length :] == self._end).any(-1)
        self.kl = self.kl + step.masked_fill(finished, 0.0)
        self.own_seconds += time.perf_counter() - left
        return scores


class _Call(LogitsProcessor):
    """A processor from a function; `generate` wants exactly these two arguments."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Hands both on."""
        return self._function(input_ids, scores)


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    processor: LogitsProcessor,
    new_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """Decodes every prompt once under a policy.

    Returns:
        "ids" (token ids of each continuation), "kl" (nats per continuation), "nll" (nats per continuation, under the
        base model), and the seconds spent in the processor and in all of `generate`.
    """
    found: dict[str, Any] = {"ids": [], "kl": [], "nll": [], "processor_seconds": 0.0, "seconds": 0.0}
    mode = {"do_sample": False} if policy.greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    title = f"{policy.method}, beta {policy.beta:g}"
    for start in track(range(0, len(prompts), batch_size), description=title):
        batch = torch.tensor(prompts[start : start + batch_size])
        meter = Meter(batch.shape[1], tokenizer.eos_token_id, greedy=policy.greedy)
        begun = time.perf_counter()
        rows = model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=new_tokens,
            logits_processor=[meter.before, processor, meter.after], **mode,
        )  # fmt: skip
        found["seconds"] += time.perf_counter() - begun - meter.own_seconds
        found["processor_seconds"] += meter.processor_seconds
        found["kl"] += torch.as_tensor(meter.kl).tolist()
        found["nll"] += _nll(model, rows, batch.shape[1], tokenizer.eos_token_id).tolist()
        found["ids"] += [up_to_end(row, tokenizer.eos_token_id) for row in rows[:, batch.shape[1] :].tolist()]
    return found


@torch.no_grad()
def _nll(model: PreTrainedModel, rows: Tensor, prompt_length: int, end: int) -> Tensor:
    """Negative log-likelihood of each continuation under the base model, end-of-text included, in nats."""
    new = rows[:, prompt_length:]
    ended_before = (new == end).long().cumsum(-1) - (new == end).long()
    # In parts, because logits over the whole vocabulary at every position fill the memory.
    losses = torch.cat([_losses(model, part, prompt_length) for part in rows.split(32)])
    return losses.masked_fill(ended_before > 0, 0.0).sum(-1)


def _losses(model: PreTrainedModel, rows: Tensor, prompt_length: int) -> Tensor:
    logits = model(rows).logits[:, prompt_length - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, prompt_length:], reduction="none")


def judged(
    found: dict[str, Any],
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    gold: SentimentModel,
    judge: SentimentModel,
) -> dict[str, Any]:
    """Adds what the sentiment models say of prompt + continuation, and how much each continuation repeats itself."""
    whole = [[*prompt, *ids] for prompt, ids in zip(prompts, found["ids"], strict=True)]
    texts = tokenizer.batch_decode(whole, skip_special_tokens=True)
    return {
        "method": policy.method,
        "beta": policy.beta,
        "texts": texts,
        "gold": gold.log_odds(texts).tolist(),
        "judge": judge.log_odds(texts).tolist(),
        "tokens": [len(ids) for ids in found["ids"]],
        "distinct_2": [distinct(ids) for ids in found["ids"]],
        **{key: found[key] for key in ("kl", "nll", "processor_seconds", "seconds")},
    }


def distinct(ids: Sequence[int]) -> float:
    """Share of a continuation's pairs of neighbouring tokens that are different pairs; 1 means no repetition."""
    pairs = list(pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
