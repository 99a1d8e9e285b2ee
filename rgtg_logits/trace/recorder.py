"""The recorder that a processor reports its steps to."""

from __future__ import annotations

import os
from itertools import pairwise

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.trace.page import render_page
from rgtg_logits.trace.steps import StepRecord, drawn_candidates, origins_of


class Trace:
    """Records the steps of a processor: pass `trace=Trace()`, generate, then read `steps` or write the page.

    Tensors stay on their device, and recording never waits for the device. Memory grows with the square of the text's
    length, because each step keeps its rows.

    The token drawn at a step is read from the rows of the next step, so that of the last step is unknown until `finish`
    receives the output of `generate`. Any number of calls of `generate` can share one trace. Assisted decoding rolls
    back, so each of its forwards is shown separately, and "drawn" is the token that follows in it, drafts included.

    Example:
        ```python
        trace = Trace()
        processor = PartialRewardLogitsProcessor("org/partial-rm", trace=trace)
        trace.finish(model.generate(**inputs, logits_processor=[processor]))
        trace.save_html("trace.html", tokenizer)
        ```
    """

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        # Outputs of `generate` by the number of steps recorded before each returned.
        self._outputs: dict[int, Tensor] = {}

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

    def finish(self, output: Int[Tensor, "rows length"]) -> None:
        """Adds the output of `generate` after the steps so far, prompts included; the page then shows these rows.

        Raises:
            InvalidArgumentError: If the rows do not continue the recorded prompts.
        """
        # Backwards from the last step, because finding all generations at every call would add up.
        start = len(self.steps) - 1
        while start > 0 and not self._starts_generation(start):
            start -= 1
        if start < 0 or None in origins_of(self.steps[start].rows, output):
            raise InvalidArgumentError(
                f"Expected the rows that generate returned after the {len(self.steps)} recorded steps, prompts "
                f"included, but the {len(output)} rows given do not start with the recorded prompts. Call finish() "
                "right after generate, with its whole output (`.sequences` if it returned a dict)."
            )
        self._outputs[len(self.steps)] = output

    def clear(self) -> None:
        """Removes all steps."""
        self.steps.clear()
        self._outputs.clear()

    def drawn(self) -> list[Bool[Tensor, "batch k"]]:
        """Masks of the candidates that were drawn, one mask per step.

        One candidate per row in greedy decoding and sampling; any number in beam search, where a prefix may continue in
        several rows or in none. None where the token is unknown: at the last step without `finish`, and where a row
        continues with a token outside the candidates, such as the padding of a finished row.
        """
        masks = []
        for steps, output in self._generations():
            for step, later in pairwise(steps):
                masks.append(drawn_candidates(step, later.rows))
            masks.append(drawn_candidates(steps[-1], output))
        return masks

    def to_html(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Renders one HTML page that needs no network and no script.

        It shows the text of each row. The shade of a token is the change of its log-probability by guidance; its
        candidates appear when it is pointed at or has the keyboard's focus. About 3 kB per token with 20 candidates.

        Args:
            tokenizer: The base model's tokenizer.

        Raises:
            InvalidArgumentError: If nothing was recorded.
        """
        if not self.steps:
            raise InvalidArgumentError(
                "Expected a trace with at least one step, but nothing was recorded. "
                "Pass it as trace= to PartialRewardLogitsProcessor and generate first."
            )
        return render_page(self._generations(), tokenizer)

    def save_html(self, path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the page, and missing folders above it; the file appears whole or not at all."""
        write_atomically(path, self.to_html(tokenizer))

    def _generations(self) -> list[tuple[list[StepRecord], Tensor | None]]:
        """The steps of each call of `generate`, and its output if `finish` received it."""
        starts = [index for index in range(len(self.steps)) if self._starts_generation(index)]
        bounds = pairwise([*starts, len(self.steps)])
        return [(self.steps[start:stop], self._outputs.get(stop)) for start, stop in bounds]

    def _starts_generation(self, index: int) -> bool:
        """Whether the rows of a step do not continue those of the step before by one token."""
        if index == 0 or index in self._outputs:
            return True
        before = self.steps[index - 1].rows
        rows = self.steps[index].rows
        one_longer = rows.shape == (before.shape[0], before.shape[1] + 1)
        return not one_longer or None in origins_of(before, rows)
