"""Options of every scorer that runs on the scoring engine."""

from __future__ import annotations

from typing import TypedDict

from transformers import CompileConfig

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.scorers.engine.strategies import STRATEGIES

OVERFLOWS = ("error", "truncate_left")


class EngineOptions(TypedDict, total=False):
    """Options of running a reward model.

    Attributes:
        strategy: One of the names that `CausalScorer` explains, or "auto", the default, for the cheapest one that is
            exact.
        speculate: Whether to take the ordinary step before looking at the rows (speculative execution), which keeps an
            accelerator busy; by default everywhere but on a CPU, where looking is free.
        on_overflow: Treatment of a text that is longer than the model can read: "error", the default, or
            "truncate_left" to let it read the end alone (and a start token), with one warning. The beginning is dropped
            in steps of a quarter of the context, so that the cache is rebuilt rarely.
        max_tokens_per_forward: Largest number of tokens (rows × columns, at least one per row) in one forward, to bound
            memory; results are unchanged. None, the default: all that a step needs.
        cache_tokens: Largest number of tokens to remember between calls; the least recently used are forgotten first.
            The rows of one call are always kept. None, the default: as many as the last calls needed at most, and as
            many again, so that requests that come, go and take turns find their past.
        compile: Whether to compile the ordinary step with `torch.compile`, as transformers compiles `generate` with a
            static cache: on a GPU a step becomes one launch of a recorded graph, which is what a small model waits for.
            The first steps are slow, and those at which the cache doubles. A `CompileConfig` of transformers sets how;
            off by default. Results are unchanged. Needs the strategy
            "masked_tree_attention", which is chosen then if it is exact.
        prepack: Whether to keep a second copy of the weights of linear layers, laid out as the processor's matrix
            instructions take them (oneDNN), for a reward model on a CPU. On an AMD processor with AVX-512 its matrix
            products take 0.35 to 0.85 of the time in float32, and 0.5 to 0.8 in bfloat16 up to 50 tokens. Off by
            default. Results are unchanged up to rounding. Later writes to weights through `.data`, as when PEFT merges
            adapters, are not noticed. Not with `compile`.
    """

    strategy: str
    speculate: bool | None
    on_overflow: str
    max_tokens_per_forward: int | None
    cache_tokens: int | None
    compile: bool | CompileConfig
    prepack: bool


def check_options(
    strategy: str,
    on_overflow: str,
    max_tokens_per_forward: int | None,
    cache_tokens: int | None,
    compile: bool | CompileConfig,
    prepack: bool,
) -> None:
    """Refuses options that `EngineOptions` does not allow.

    Raises:
        InvalidArgumentError: If an option is out of its range, or two exclude each other.
    """
    if strategy != "auto" and strategy not in STRATEGIES:
        raise InvalidArgumentError(
            f"Expected strategy to be 'auto' or one of {', '.join(STRATEGIES)}, but got {strategy!r}. Leave it out to "
            "take the cheapest one that is exact on the model."
        )
    if on_overflow not in OVERFLOWS:
        raise InvalidArgumentError(
            f"Expected on_overflow to be one of {', '.join(OVERFLOWS)}, but got {on_overflow!r}. Use 'error' to get an "
            "error for texts that the reward model cannot read whole."
        )
    bounds = {"max_tokens_per_forward": max_tokens_per_forward, "cache_tokens": cache_tokens}
    for name, bound in bounds.items():
        if bound is not None and not (isinstance(bound, int) and bound >= 1):
            raise InvalidArgumentError(
                f"Expected {name} to be 1 or more, or None, but got {bound!r}. Leave it out unless memory runs short."
            )
    if compile and prepack:
        raise InvalidArgumentError("Expected compile or prepack, but got both. On a GPU, compile; on a CPU, prepack.")
