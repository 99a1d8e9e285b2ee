"""Draws answers from the base model, each by numbers of its own.

`generate` draws from one generator for the whole batch, so what a row gets depends on the rows beside it. Here every
answer has its own sequence of uniform numbers, one for each token: the hash of (seed, prompt, answer). A token is the
one in whose share of the cumulative distribution the number lies (inverse transform sampling), which draws exactly from
that distribution. So an answer does not depend on the batch it is in, on the other answers, or on what was drawn
before, and a run that was interrupted goes on with the very numbers that it would have used. What is left of the batch
is rounding: a number that lies within some 1e-7 of the border of two tokens may fall on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import shake_256
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.sampling.prompts import Prompt
from rgtg_logits.scorers import Detokenizer
from rgtg_logits.tokenization import text_boundaries


class Answer(NamedTuple):
    """What the model said, without the token that ends an answer, and whether it was cut before it ended."""

    text: str
    truncated: bool


def uniforms(key: str, count: int) -> Float64[Tensor, " count"]:
    """Numbers between 0 (included) and 1, the same on every machine; fewer of them are the first of more.

    They are the first 53 bits of each 8 bytes of SHAKE-256 of the key.
    """
    stream = torch.frombuffer(bytearray(shake_256(key.encode()).digest(8 * count)), dtype=torch.int64)
    # The shift keeps the sign, which is cut off.
    return ((stream >> 11) & (2**53 - 1)).double() * 2**-53


def float64_device(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Scores on a device that has float64: Apple's accelerators have none."""
    return scores.cpu() if scores.device.type == "mps" else scores


def possible(scores: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch some"] | None:
    """The tokens that can be drawn, by id, and in rows of fewer some others; None if they are most of the vocabulary.

    Of a vocabulary that was cut to some candidates, nearly all is not worth computing with.
    """
    # Half the time of a sum of truth values.
    most = int((scores != float("-inf")).to(torch.uint8).sum(-1, dtype=torch.int32).max())
    return None if 4 * most > scores.shape[-1] else scores.topk(most, dim=-1).indices.sort(-1).values


class Draw(LogitsProcessor):
    """Leaves one token of each row, drawn by the row's next number; greedy decoding then takes it.

    Args:
        numbers: For each row, one number for each new token.
        prompt_length: Columns of the prompts, padding included.
        warpers: Applied to the scores before.
    """

    def __init__(
        self,
        numbers: Float64[Tensor, "batch steps"],
        prompt_length: int,
        warpers: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._numbers, self._prompt_length, self._warpers = numbers, prompt_length, warpers

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Scores in which the drawn token is the only one.

        Raises:
            InvalidArgumentError: If scores are NaN.
        """
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        ids = possible(scores)
        # In float64, because in float32 the shares of rare tokens vanish in the sum.
        drawable = float64_device(scores if ids is None else scores.gather(-1, ids))
        shares = drawable.softmax(-1, dtype=torch.float64).cumsum(-1)
        if not bool(shares[:, -1].isfinite().all()):
            raise InvalidArgumentError(
                "Expected finite scores from the base model, but some are NaN, which half precision may do. "
                "Load it in another type with --dtype, such as float32."
            )
        number = self._numbers[:, input_ids.shape[1] - self._prompt_length, None].to(shares.device)
        # The first token whose share ends beyond the number: never one of probability 0.
        place = torch.searchsorted(shares, number * shares[:, -1:], right=True).to(scores.device)
        token = place if ids is None else ids.gather(-1, place)
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


class Sampler:
    """Draws answers of a base model.

    Args:
        model: The base model. Its generation config is replaced by one that says where answers end and nothing else,
            because penalties and the like that it may hold would change what is drawn.
        tokenizer: Its tokenizer.
        max_new_tokens: Longest answer in tokens.
        seed: Seed of every draw.
        temperature: Divides the scores; 1 leaves them as they are.
        top_k: Draw from this many of the most likely tokens; 0 is all.
        top_p: Draw from the most likely tokens that have this probability together; 1 is all.
        guide: Makes, from the mask of the prompts, what guides the scores before all that.

    Attributes:
        ends: The tokens that end an answer.
        pad: The token that pads.
        steps: Longest answer in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guide: Callable[[Int[Tensor, "batch length"]], LogitsProcessor] | None = None,
    ) -> None:
        self._model, self.steps, self._seed, self._guide = model, max_new_tokens, seed, guide
        self.ends = _ends(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad = next(iter(self.ends), 0) if pad is None else int(pad)
        self._detokenizer = Detokenizer(tokenizer, self.ends)
        model.generation_config = GenerationConfig(eos_token_id=self.ends or None, pad_token_id=self.pad)
        self._warpers: list[LogitsProcessor] = []
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    def draw(self, prompts: Sequence[Prompt], numbers: Sequence[int]) -> list[Answer]:
        """Draws one answer to each prompt, in one batch.

        Args:
            prompts: The prompts, perhaps the same several times.
            numbers: Which of the answers to its prompt each one is, from 0.
        """
        drawn = self.draw_tokens(
            [prompt.ids for prompt in prompts],
            [f"{self._seed}:{prompt.index}:{number}" for prompt, number in zip(prompts, numbers, strict=True)],
        )
        return [self.answer(prompt, new) for prompt, new in zip(prompts, drawn, strict=True)]

    def draw_tokens(self, prompts: Sequence[Sequence[int]], keys: Sequence[str]) -> list[list[int]]:
        """The new tokens of each row, that which ends it included; `keys` name the numbers, see `uniforms`."""
        rows, mask = self.padded(prompts)
        guides = [] if self._guide is None else [self._guide(mask)]
        return self.decode(rows, mask, [*guides, Draw(self.numbers(keys), rows.shape[1], self._warpers)])

    def padded(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        """The prompts padded on the left, where the model is, and their mask."""
        length, device = max(map(len, prompts)), self._model.device
        rows = [[self.pad] * (length - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def numbers(self, keys: Sequence[str]) -> Float64[Tensor, "batch steps"]:
        """One number for each new token of each row; see `uniforms`."""
        return torch.stack([uniforms(key, self.steps) for key in keys])

    @torch.no_grad()
    def decode(
        self,
        rows: Int[Tensor, "batch length"],
        mask: Int[Tensor, "batch length"],
        processors: Sequence[LogitsProcessor],
    ) -> list[list[int]]:
        """The new tokens of each row, that which ends it included; the best one each that the processors leave."""
        whole = self._model.generate(
            input_ids=rows, attention_mask=mask, max_new_tokens=self.steps, do_sample=False, num_beams=1,
            logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip
        return [self._up_to_end(row) for row in whole[:, rows.shape[1] :].tolist()]

    def answer(self, prompt: Prompt, new: Sequence[int]) -> Answer:
        """What new tokens say."""
        said = self.said(new)
        text = self._detokenizer.answer(prompt.text, self._detokenizer.decode([*prompt.ids, *said]))
        return Answer(text, truncated=len(said) == len(new))

    def said(self, new: Sequence[int]) -> list[int]:
        """New tokens without the one that ends them."""
        return list(new[:-1] if new[-1] in self.ends else new)

    def _up_to_end(self, row: list[int]) -> list[int]:
        """Behind the end of an answer there is padding."""
        end = next((index for index, token in enumerate(row) if token in self.ends), len(row))
        return row[: end + 1]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer, by the model and by its tokenizer."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in (*listed, *text_boundaries(tokenizer).ending_tokens) if token is not None})
