"""The logits processor: candidates, their rewards and the guidance formula, once per token of `generate`."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CompileConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.candidates import CandidateRule, Candidates
from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.guidance import (
    RESTS,
    gather_candidates,
    guide,
    guide_with_tail,
    normalise,
    scatter_to_vocabulary,
    truncate,
)
from rgtg_logits.inputs import check_step, plain_number, plain_tokenizer
from rgtg_logits.locks import ObjectLock
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers import Scorer, make_scorer
from rgtg_logits.tokenization import encode_prompt
from rgtg_logits.trace import Trace


class PartialRewardLogitsProcessor(LogitsProcessor):
    r"""Makes `generate` draw every token from the reward-guided policy `pi_ref · exp(beta · reward)`.

    At each step a reward model that was trained on partial sequences scores the candidates (the top-k next tokens of
    the base model) in one cached forward, and the scores become

        log pi(v | x, y_<t) = log pi_ref(v | x, y_<t) + beta · r(x, y_<t, v) − log Z

    over the candidates and -inf elsewhere (Rashid et al., arXiv 2406.07780). Works wherever `generate` takes
    `logits_processor=`: greedy, sampling, beams, several return sequences, left-padded batches, pipelines, assisted
    decoding, and one object for any number of calls.

    Args:
        reward_model: A Hub id or a folder, a `RewardModel` of any kind, a transformers `…ForSequenceClassification`
            model with one label, or any `Scorer`. A loaded model is used as it is, on the device where it is.
        beta: Guidance strength in nats per unit of reward. 0 is the base model truncated to the candidates, and costs
            no reward model call; 1 to 4 is typical for rewards with a spread of about one; with larger values the
            reward decides and the base model fades. It is 1/β of KL-regularised RLHF. `generate` applies its
            temperature T afterwards, which makes it beta / T.
        top_k: Number of candidates; see `CandidateRule`. `generate` in sampling mode applies its own `top_k=50`
            afterwards, which changes nothing as long as it is not smaller. Beam sampling draws 2 · `num_beams`
            different tokens in its first step: give it as many candidates, because it fills up with impossible ones, as
            under transformers' own `top_k`.
        top_p: Restrict the candidates to this share of the base model's probability.
        min_p: Restrict the candidates to those at least this fraction as probable as the best.
        rest: Treatment of the tail of the distribution, the tokens outside the candidate set. "drop", the default,
            makes them impossible, as in the paper and as `top_k` of `generate` does; "keep" leaves them possible, as if
            their reward were the mean of the candidates'. With "keep" the policy stays closer to the base model at the
            same reward, the more so the less probability the candidates hold; with few candidates of a model that is
            unsure, much of a text is then left unguided.
        tokenizer: The base model's tokenizer, or a multimodal processor that has one. Its vocabulary is compared with
            the reward model's: if a token has another id there, or none, the reward model reads text
            (`RetokenizingScorer`). Left out, token ids are taken to mean the same in both.
        prompt_format: Format in which the reward model expects prompt and answer, which makes it read text: "chat" for
            its chat template, or a function of both texts; see `RetokenizingScorer`.
        eos_token_id: Tokens that end the base model's text besides its tokenizer's own, as in generation configs, for a
            reward model that reads text: their rewards are those of the finished text.
        on_overflow: Treatment of a text that is longer than the reward model can read: "error" (before the first token
            if the prompt is too long already), or "truncate_left" to let it read the end alone.
        max_tokens_per_forward: Largest number of tokens (rows × columns) that the reward model reads in one forward, to
            bound memory for many rows and candidates; results are unchanged.
        compile: Whether to compile the reward model's step (on a GPU, a recorded graph); see `EngineOptions`.
        prepack: Whether a reward model on a CPU keeps a second copy of its weights, laid out for the processor's matrix
            instructions, which makes its step faster; see `EngineOptions`.
        pad_token_id: The token that pads rows on the left; by default the tokenizer's, or else the reward model's.
        attention_mask: The prompt's mask, for prompts in which the pad token also leads the text (pad == bos). A
            processor that has one is for those prompts only.
        trace: Record of each step's candidates, rewards and probabilities, to be filled.

    Raises:
        InvalidArgumentError: If a value is out of its range, or `reward_model` is none of the above.
        CheckpointError: If a Hub id or folder cannot be loaded.
        RewardModelError: If the model cannot give rewards of prefixes.
        VocabularyError: If the reward model does not share the base model's tokens.

    Example:
        ```python
        processor = PartialRewardLogitsProcessor("org/partial-rm", beta=1.5, top_k=20)
        model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[processor])
        ```

    One object may serve several threads; they take turns.
    """

    supports_continuous_batching = False
    """With continuous batching, a processor would see one token of each row; so transformers refuses to call it."""

    def __init__(
        self,
        reward_model: str | os.PathLike[str] | RewardModel | PreTrainedModel | Scorer,
        *,
        beta: float = 1.0,
        top_k: int = 20,
        top_p: float | None = None,
        min_p: float | None = None,
        rest: str = "drop",
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt_format: str | Callable[[str, str], str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        on_overflow: str = "error",
        max_tokens_per_forward: int | None = None,
        compile: bool | CompileConfig = False,
        prepack: bool = False,
        pad_token_id: int | None = None,
        attention_mask: Int[Tensor, "prompts length"] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.beta = _checked_beta(beta)
        self.rule = CandidateRule(top_k=top_k, top_p=top_p, min_p=min_p)
        self.rest = _checked_rest(rest)
        tokenizer = plain_tokenizer(tokenizer)
        self.scorer = make_scorer(
            reward_model, tokenizer, prompt_format=prompt_format, eos_token_id=eos_token_id, on_overflow=on_overflow,
            max_tokens_per_forward=max_tokens_per_forward, compile=compile, prepack=prepack,
        )  # fmt: skip
        self.trace = trace
        self.tokenizer = tokenizer
        self.attention_mask = attention_mask
        self._prompt: _Prompt | None = None
        self._lock = ObjectLock()
        self.pad_token_id = _checked_pad_token(pad_token_id)
        if self.pad_token_id is None:
            self.pad_token_id = getattr(tokenizer, "pad_token_id", None)
        if self.pad_token_id is None:
            self.pad_token_id = self.scorer.pad_token_id

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Guides one step.

        Args:
            input_ids: Prefixes, left padding included.
            scores: The base model's logits or log-probabilities; not edited. There may be no rows.

        Returns:
            Log-probabilities renormalised over the candidates, -inf elsewhere; a new tensor. Rows whose scores are all
            equal have no best candidates: they are returned unguided, as log-probabilities, so that prompt lookup
            decoding, which learns from such scores which tokens are forbidden, keeps its drafts.

        Raises:
            InvalidArgumentError: If `input_ids` or `scores` have another shape or type.
            PaddingError: If padding cannot be distinguished from text.
            VocabularyError: If the reward model does not have a candidate.
            ContextLengthError: If a prefix is longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        check_step(input_ids, scores)
        if len(scores) == 0:
            return scores.clone()
        with self._lock:
            rows, mask = self._rows(input_ids)
            if self.scorer.known_tokens is not None:
                self.scorer.known_tokens.check_text(rows, mask)
                scores = self.scorer.known_tokens.mask(scores)
            candidates = self.rule.select(scores)
            unguided = self._unguided_rows(scores, candidates)
            # A look is free on a CPU; for an accelerator the host would have to wait.
            if scores.device.type == "cpu":
                if unguided is not None and unguided.all():
                    return scores.log_softmax(-1)
                candidates = candidates.without_unused_slots()
            rewards = self._rewards(rows, mask, candidates)
            log_probs = self._log_probs(scores, candidates, rewards)
            if self.trace is not None:
                base = log_probs if rewards is None else self._log_probs(scores, candidates, None)
                before = gather_candidates(candidates, base)
                after = gather_candidates(candidates, log_probs)
                self.trace.record(rows, candidates.ids, before, rewards, after)
            return log_probs if unguided is None else torch.where(unguided, scores.log_softmax(-1), log_probs)

    def _rewards(self, rows: Tensor, mask: Tensor, candidates: Candidates) -> Float[Tensor, "batch k"] | None:
        """The candidates' rewards; None where they would change nothing."""
        if self.beta == 0:
            return None
        if candidates.ids.shape[1] == 1:
            # The reward of a single candidate changes nothing.
            self.scorer.observe(rows, mask)
            return None
        if self.rest == "keep":
            # Texts may go on with tokens that are no candidates.
            self.scorer.observe(rows, mask)
        return self.scorer.score(rows, mask, candidates.ids)

    @profiled("policy")
    def _log_probs(
        self, scores: Float[Tensor, "batch vocab"], candidates: Candidates, rewards: Float[Tensor, "batch k"] | None
    ) -> Float[Tensor, "batch vocab"]:
        """Log-probabilities of all tokens; without rewards, those of the base model."""
        if self.rest == "keep":
            if rewards is None:
                return normalise(scores)
            return guide_with_tail(candidates, rewards, self.beta, scores)
        guided = truncate(candidates) if rewards is None else guide(candidates, rewards, self.beta)
        return scatter_to_vocabulary(candidates, guided, like=scores)

    def _unguided_rows(self, scores: Tensor, candidates: Candidates) -> Bool[Tensor, "batch 1"] | None:
        """Rows without best candidates; None if a look, which is free on a CPU, shows that there are none."""
        if scores.device.type == "cpu" and candidates.is_tied is not None and not candidates.is_tied.any():
            return None
        return self.rule.has_no_best(scores)

    def for_prompt(
        self,
        prompt: Int[Tensor, "prompts length"] | str | Sequence[str],
        attention_mask: Int[Tensor, "prompts length"] | None = None,
        *,
        start: int | None = None,
    ) -> PartialRewardLogitsProcessor:
        """Returns this processor for prompts that rows do not hold: `inputs_embeds`, encoder-decoder base models.

        Args:
            prompt: The prompts that the reward model reads in front of the answers: token ids padded on the left, or
                texts.
            attention_mask: 1 for text, 0 for padding in `prompt`; all text by default.
            start: Number of leading tokens of the rows that `generate` passes that are not part of the answer (the
                decoder's start token); by default as many as it passes first.

        Returns:
            A processor for these prompts, in this order, which shares reward model, cache and trace with this one.

        Raises:
            InvalidArgumentError: If texts are given and the tokenizer is unknown, or a mask does not fit.

        Example:
            ```python
            processor = PartialRewardLogitsProcessor("org/partial-rm", tokenizer=tokenizer)
            model.generate(inputs_embeds=embeddings, logits_processor=[processor.for_prompt(input_ids, attention_mask)])
            ```
        """
        if not isinstance(prompt, Tensor):
            prompt, attention_mask = _tokenize(self.tokenizer, [prompt] if isinstance(prompt, str) else list(prompt))
        mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        if mask.shape != prompt.shape:
            raise InvalidArgumentError(
                f"Expected attention_mask to have the shape {tuple(prompt.shape)} of the prompt, but got "
                f"{tuple(mask.shape)}. Pass both as the tokenizer returned them."
            )
        # A shallow copy, which shares scorer, cache, lock and trace.
        processor = copy.copy(self)
        processor._prompt = _Prompt(prompt, mask, start)
        return processor

    def _rows(self, input_ids: Int[Tensor, "batch passed"]) -> tuple[Int[Tensor, "batch length"], Tensor]:
        """The rows that the reward model reads, and their mask."""
        if self._prompt is not None:
            rows, prompt_mask = self._prompt.followed_by(input_ids)
            if rows.shape[1] == 0:
                raise PaddingError(
                    "Expected a token for the reward model to read, but the prompts given to for_prompt have none. "
                    "Pass start=0 to let it read the decoder's start token, or a prompt of one token, such as bos."
                )
            return rows, infer_attention_mask(rows, self.pad_token_id, prompt_mask)
        if input_ids.shape[1] == 0:
            raise PaddingError(
                "Expected the prompt's token ids, because the reward model reads the prompt, but generate was given "
                "inputs_embeds alone. Pass processor.for_prompt(input_ids, attention_mask) as the logits processor."
            )
        return input_ids, infer_attention_mask(input_ids, self.pad_token_id, self.attention_mask)


@dataclass
class _Prompt:
    """Prompts that are not part of the rows.

    Attributes:
        ids: Their token ids.
        mask: 1 for text, 0 for padding.
        start: Number of leading columns of the rows that are not part of the answer; None before the first call.
    """

    ids: Int[Tensor, "prompts length"]
    mask: Int[Tensor, "prompts length"]
    start: int | None

    def followed_by(self, rows: Int[Tensor, "batch passed"]) -> tuple[Int[Tensor, "batch length"], Tensor]:
        """Returns prompt and answer of every row, and the prompts' mask."""
        if self.start is None:
            self.start = rows.shape[1]
        prompts = self.ids.shape[0]
        if rows.shape[0] % prompts or rows.shape[1] < self.start:
            raise PaddingError(
                f"Expected rows that answer the {prompts} prompts given to for_prompt and start with {self.start} "
                f"tokens of the decoder, but got {rows.shape[0]} rows of {rows.shape[1]} tokens. Call for_prompt again "
                "for other prompts."
            )
        repeated = self.ids.to(rows.device).repeat_interleave(rows.shape[0] // prompts, dim=0)
        return torch.cat([repeated, rows[:, self.start :]], dim=1), self.mask


def _tokenize(tokenizer: PreTrainedTokenizerBase | None, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids of texts, padded on the left, and their attention mask."""
    if tokenizer is None:
        raise InvalidArgumentError(
            "Expected token ids as the prompt, because the processor was made without a tokenizer, but got text. "
            "Pass tokenizer= to PartialRewardLogitsProcessor, or the ids to for_prompt."
        )
    rows = [encode_prompt(tokenizer, text) for text in texts]
    width = max(len(row) for row in rows)
    # Any token may stand in the place of padding, because the mask excludes it.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], dtype=torch.long)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)


def _checked_rest(rest: str) -> str:
    if rest not in RESTS:
        raise InvalidArgumentError(
            f"Expected rest to be one of {', '.join(RESTS)}, but got {rest!r}. Use 'drop' to draw from the candidates "
            "alone, 'keep' to leave the other tokens possible."
        )
    return rest


def _checked_beta(beta: float) -> float:
    number = plain_number(beta)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise InvalidArgumentError(
            f"Expected beta to be a finite guidance strength of 0 or more, but got {beta!r}. "
            "Use 0 for no guidance; to lower a reward, change its sign in the reward model."
        )
    return float(number)


def _checked_pad_token(pad_token_id: int | None) -> int | None:
    number = plain_number(pad_token_id)
    if pad_token_id is not None and not isinstance(number, int):
        raise InvalidArgumentError(
            f"Expected pad_token_id to be the id of a token, a whole number, but got {pad_token_id!r}. "
            "Pass tokenizer.pad_token_id of the base model, or leave it out."
        )
    return number if isinstance(number, int) else None
