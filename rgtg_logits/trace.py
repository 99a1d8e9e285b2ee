"""What happened at each step of a guided generation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One call of the processor.

    Attributes:
        rows: The prefixes, padding included.
        candidates: The candidate tokens.
        base: Log-probabilities of the base model cut to the candidates, in nats; -inf in unused slots.
        rewards: Rewards of the candidates; None if the reward model was not asked.
        guided: Log-probabilities after guidance, in nats.
    """

    rows: Int[Tensor, "batch length"]
    candidates: Int[Tensor, "batch k"]
    base: Float[Tensor, "batch k"]
    rewards: Float[Tensor, "batch k"] | None
    guided: Float[Tensor, "batch k"]


class Trace:
    """Records the steps of a processor: pass `trace=Trace()` and read `steps` afterwards.

    Tensors stay on their device; recording waits for nothing.
    """

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def record(
        self,
        rows: Int[Tensor, "batch length"],
        candidates: Int[Tensor, "batch k"],
        base: Float[Tensor, "batch k"],
        rewards: Float[Tensor, "batch k"] | None,
        guided: Float[Tensor, "batch k"],
    ) -> None:
        """Adds one step."""
        self.steps.append(StepRecord(rows, candidates, base, rewards, guided))

    def clear(self) -> None:
        """Forgets all steps."""
        self.steps.clear()
