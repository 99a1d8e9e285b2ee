"""Sampling of answers from the base model, with random numbers that do not depend on the batch.

`generate` draws from one generator for the whole batch, so the tokens of a row depend on the other rows. Here every
answer has its own sequence of uniform numbers, one for each token: a hash of (seed, prompt, answer), in the manner of a
counter-based random number generator. Inverse transform sampling turns each number into a token: the one whose interval
of the cumulative distribution contains the number. This draws exactly from the distribution.

So an answer does not depend on its batch, on other answers, or on earlier draws, and a run that resumes after an
interruption uses the same numbers as one that was never interrupted. Only rounding depends on the batch: a number
within some 1e-7 of the border between two tokens may fall on either side.
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
    """The text of an answer without its end-of-text token, and whether it was cut at the longest length."""

    text: str
    truncated: bool


def hashed_uniforms(key: str, count: int) -> Float64[Tensor, " count"]:
    """Uniform numbers in [0, 1) from a hash of a key, the same on every machine.

    Each number is the upper 53 bits of 8 bytes of SHAKE-256 of the key, so a longer sequence begins with the shorter.
    """
    stream = torch.frombuffer(bytearray(shake_256(key.encode()).digest(8 * count)), dtype=torch.int64)
    # An arithmetic shift keeps the sign, which the mask removes.
    return ((stream >> 11) & (2**53 - 1)).double() * 2**-53


def float64_device(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The scores on a device that supports float64, which Apple's GPUs (MPS) do not."""
    return scores.cpu() if scores.device.type == "mps" else scores


def support(scores: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch some"] | None:
    """The ids of tokens with a probability above 0, ascending; None if these are over a quarter of the vocabulary.

    A row with fewer such tokens than the widest one is filled up with others. When the vocabulary has been cut to a few
    candidates, computing on the support alone is many times cheaper.
    """
    # Summing uint8 takes half the time of summing booleans.
    most = int((scores != float("-inf")).to(torch.uint8).sum(-1, dtype=torch.int32).max())
    if 4 * most > scores.shape[-1]:
        return None
    return scores.topk(most, dim=-1).indices.sort(-1).values


class InverseTransformProcessor(LogitsProcessor):
    """Inverse transform sampling with given random numbers: leaves the drawn token of each row for greedy decoding.

    Args:
        uniforms: For each row, one number in [0, 1) for each new token.
        prompt_length: Columns of the prompts, padding included.
        warpers: Applied to the scores first.
    """

    def __init__(
        self,
        uniforms: Float64[Tensor, "batch steps"],
        prompt_length: int,
        warpers: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._uniforms = uniforms
        self._prompt_length = prompt_length
        self._warpers = warpers

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Scores of 0 for the drawn token and -inf for all others.

        Raises:
            InvalidArgumentError: If scores are NaN.
        """
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        ids = support(scores)
        # In float64, because in float32 the probabilities of rare tokens vanish in the cumulative sum.
        possible = float64_device(scores if ids is None else scores.gather(-1, ids))
        cumulative = possible.softmax(-1, dtype=torch.float64).cumsum(-1)
        if not bool(cumulative[:, -1].isfinite().all()):
            raise InvalidArgumentError(
                "Expected finite scores from the base model, but some are NaN, which half precision may cause. "
                "Load it in another type with --dtype, such as float32."
            )
        step = input_ids.shape[1] - self._prompt_length
        number = self._uniforms[:, step, None].to(cumulative.device)
        # The first token whose interval ends beyond the number: never one of probability 0.
        index = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True).to(scores.device)
        token = index if ids is None else ids.gather(-1, index)
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


class Sampler:
    """Samples answers from a base model.

    Args:
        model: The base model. Its generation config is replaced by one with nothing but end and padding tokens, because
            a repetition penalty or the like would change the distribution.
        tokenizer: Its tokenizer.
        max_new_tokens: Longest answer in tokens.
        seed: Seed of every draw.
        temperature: Divides the scores; 1 leaves them as they are.
        top_k: Sample from this many of the most likely tokens; 0 is all.
        top_p: Sample from the most likely tokens that hold this probability together; 1 is all.
        guide: Builds a processor from the attention mask of the prompts; it is applied before temperature, top_k and
            top_p.

    Attributes:
        eos_token_ids: Token ids that end an answer.
        pad_token_id: Token id of the padding.
        max_new_tokens: Longest answer in tokens.
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
        self._model = model
        self._seed = seed
        self._guide = guide
        self.max_new_tokens = max_new_tokens
        self.eos_token_ids = _eos_token_ids(model, tokenizer)
        self.pad_token_id = _pad_token_id(tokenizer, self.eos_token_ids)
        self._detokenizer = Detokenizer(tokenizer, self.eos_token_ids)
        model.generation_config = GenerationConfig(
            eos_token_id=self.eos_token_ids or None, pad_token_id=self.pad_token_id
        )
        self._warpers: list[LogitsProcessor] = []
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    def draw(self, prompts: Sequence[Prompt], numbers: Sequence[int]) -> list[Answer]:
        """Samples one answer to each prompt, in one batch.

        Args:
            prompts: The prompts; one prompt may occur several times.
            numbers: The number of each answer among those to its prompt, from 0.
        """
        keys = [f"{self._seed}:{prompt.index}:{number}" for prompt, number in zip(prompts, numbers, strict=True)]
        rows = self.draw_tokens([prompt.ids for prompt in prompts], keys)
        return [self.answer(prompt, new) for prompt, new in zip(prompts, rows, strict=True)]

    def draw_tokens(self, prompts: Sequence[Sequence[int]], keys: Sequence[str]) -> list[list[int]]:
        """Samples the new tokens of each row, up to its end-of-text token.

        Args:
            prompts: Token ids of each prompt.
            keys: The key of each row's random numbers; see `hashed_uniforms`.
        """
        input_ids, attention_mask = self.pad_left(prompts)
        processors: list[LogitsProcessor] = [] if self._guide is None else [self._guide(attention_mask)]
        processors.append(InverseTransformProcessor(self.uniforms(keys), input_ids.shape[1], self._warpers))
        return self.decode(input_ids, attention_mask, processors)

    def pad_left(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        """The prompts padded on the left and their attention mask, on the model's device."""
        length = max(map(len, prompts))
        rows = [[self.pad_token_id] * (length - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self._model.device
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def uniforms(self, keys: Sequence[str]) -> Float64[Tensor, "batch steps"]:
        """One random number for each new token of each row; see `hashed_uniforms`."""
        return torch.stack([hashed_uniforms(key, self.max_new_tokens) for key in keys])

    @torch.no_grad()
    def decode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        processors: Sequence[LogitsProcessor],
    ) -> list[list[int]]:
        """Greedy decoding behind some processors: the new tokens of each row, up to its end-of-text token."""
        # Processors leave a single token where they sample, so greedy search takes the sampled token.
        sequences = self._model.generate(
            input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=self.max_new_tokens, do_sample=False,
            num_beams=1, logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip
        return [self._up_to_end(row) for row in sequences[:, input_ids.shape[1] :].tolist()]

    def answer(self, prompt: Prompt, new: Sequence[int]) -> Answer:
        """The text of new tokens."""
        tokens = self.without_eos(new)
        text = self._detokenizer.answer(prompt.text, self._detokenizer.decode([*prompt.ids, *tokens]))
        return Answer(text, truncated=len(tokens) == len(new))

    def without_eos(self, new: Sequence[int]) -> list[int]:
        """New tokens without the end-of-text token, if they have one."""
        return list(new[:-1] if new[-1] in self.eos_token_ids else new)

    def _up_to_end(self, row: list[int]) -> list[int]:
        """A row without the padding behind its end-of-text token."""
        for index, token in enumerate(row):
            if token in self.eos_token_ids:
                return row[: index + 1]
        return row


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end an answer, for the model or for its tokenizer."""
    of_model = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = of_model if isinstance(of_model, list) else [of_model]
    return sorted({int(token) for token in (*ids, *text_boundaries(tokenizer).ending_tokens) if token is not None})


def _pad_token_id(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int]) -> int:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return eos_token_ids[0] if eos_token_ids else 0
