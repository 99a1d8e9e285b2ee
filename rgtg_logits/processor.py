"""The logits processor: candidates, their rewards and the guidance formula, once per token of `generate`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CompileConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.candidates import CandidateRule, is_lookup_probe
from rgtg_logits.columns import Column
from rgtg_logits.decoding_step import chosen_candidates, take_step
from rgtg_logits.errors import InvalidArgumentError, PaddingError
from rgtg_logits.guidance import GuidanceSettings
from rgtg_logits.hidden_prompt import HiddenPrompt, tokenize_prompts
from rgtg_logits.inputs import check_step, plain_tokenizer
from rgtg_logits.locks import ObjectLock
from rgtg_logits.pad_token import find_pad_token
from rgtg_logits.padding import PaddingReader, TextMask
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers import Scorer, make_scorer
from rgtg_logits.trace import Trace

_UNCHANGED: Any = object()
"""Stands for a setting that `with_settings` leaves as it is."""


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
            temperature T afterwards, which makes it beta / T. This and the next four are one for all rows, or a list or
            tensor with an entry for each row of `generate` or for each prompt, whose beams and return sequences then
            share it. In a batch, rows of strength 0 cost nothing.
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
            the reward model's: if a word or an end of text has another id there, or none, the reward model reads text
            (`RetokenizingScorer`); other tokens that only the base model has are no candidates. Left out,
            token ids are taken to mean the same in both.
        prompt_format: Format in which the reward model expects prompt and answer, which makes it read text: "chat" for
            its chat template, or a function of both texts; see `RetokenizingScorer`.
        eos_token_id: Tokens that end the base model's text besides its tokenizer's own, as in generation configs, for a
            reward model that reads text: their rewards are those of the finished text.
        on_overflow: Treatment of a text that is longer than the reward model can read: "error" (before the first token
            if the prompt is too long already), or "truncate_left" to let it read the end alone.
        max_tokens_per_forward: Largest number of tokens (rows × columns) that the reward model reads in one forward, to
            bound memory for many rows and candidates; results are unchanged.
        cache_tokens: Largest number of tokens that the reward model's cache remembers between calls, the least recently
            used forgotten first; by default twice what the last calls needed.
        compile: Whether to compile the reward model's step (on a GPU, a recorded graph); see `EngineOptions`.
        prepack: Whether a reward model on a CPU keeps a second copy of its weights, laid out for the processor's matrix
            instructions, which makes its step faster; see `EngineOptions`.
        pad_token_id: The token that pads rows, in front of prompts and behind finished texts; it is believed. By
            default the tokenizer's, or else the reward model's: if it neither begins nor ends texts, a leading run of
            it is padding. If it does, or is unknown (-1 too), a single row is text, and so are rows that all begin
            alike; others are refused. A finished row is left out only once it is proven to have finished, which this
            argument makes faster where texts end in the token that pads.
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
        model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, logits_processor=[processor])
        ```

    One object may serve several threads; they take turns. Continuous batching (`generate_batch`, and `generate` with
    `cache_implementation="paged"`) never calls a processor, and does not say so: its texts are unguided.
    """

    supports_continuous_batching = False
    """Should transformers begin to call processors there, it would pass one token of each row; this makes it refuse."""

    def __init__(
        self,
        reward_model: str | os.PathLike[str] | RewardModel | PreTrainedModel | Scorer,
        *,
        beta: float | Column = 1.0,
        top_k: int | Column = 20,
        top_p: float | Column | None = None,
        min_p: float | Column | None = None,
        rest: str | Sequence[str] = "drop",
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt_format: str | Callable[[str, str], str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        on_overflow: str = "error",
        max_tokens_per_forward: int | None = None,
        cache_tokens: int | None = None,
        compile: bool | CompileConfig = False,
        prepack: bool = False,
        pad_token_id: int | None = None,
        attention_mask: Int[Tensor, "prompts length"] | None = None,
        trace: Trace | None = None,
    ) -> None:
        rule = CandidateRule(top_k=top_k, top_p=top_p, min_p=min_p)
        self.settings = GuidanceSettings(beta=beta, rule=rule, rest=rest)
        tokenizer = plain_tokenizer(tokenizer)
        self.scorer = make_scorer(
            reward_model, tokenizer, prompt_format=prompt_format, eos_token_id=eos_token_id, on_overflow=on_overflow,
            max_tokens_per_forward=max_tokens_per_forward, cache_tokens=cache_tokens, compile=compile, prepack=prepack,
        )  # fmt: skip
        self.trace = trace
        self.tokenizer = tokenizer
        self.attention_mask = attention_mask
        self._prompt: HiddenPrompt | None = None
        self._lock = ObjectLock()
        pad_token = find_pad_token(pad_token_id, tokenizer, self.scorer, eos_token_id)
        self.pad_token_id = pad_token.id
        self._padding = PaddingReader(pad_token)

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Guides one step.

        Args:
            input_ids: Prefixes, left padding included.
            scores: The base model's logits or log-probabilities; not edited. There may be no rows.

        Returns:
            Log-probabilities renormalised over the candidates, -inf elsewhere; a new tensor. A single row in which more
            tokens than can be candidates score 1, and no other is possible, is returned unguided: prompt lookup
            decoding learns from such scores which tokens are forbidden, and so keeps its drafts.

        Raises:
            InvalidArgumentError: If `input_ids` or `scores` have another shape or type, or the rows are no multiple of
                the entries of a setting.
            PaddingError: If padding cannot be distinguished from text.
            VocabularyError: If the reward model does not have a candidate.
            ContextLengthError: If a prefix is longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        check_step(input_ids, scores)
        if len(scores) == 0:
            return scores.clone()
        with self._lock:
            rows, text = self._rows(input_ids)
            if self.scorer.known_tokens is not None:
                self.scorer.known_tokens.check_text(rows, text.mask)
                scores = self.scorer.known_tokens.mask(scores)
            is_on_cpu = scores.device.type == "cpu"
            if is_on_cpu:
                self._check(input_ids, rows, text)
            settings = self.settings.for_rows(len(scores))
            candidates = chosen_candidates(scores, settings)
            probe = is_lookup_probe(scores, candidates)
            if probe is not None and is_on_cpu:
                return scores.log_softmax(-1)
            step = take_step(scores, settings, candidates, self._rewards_of(rows, text.mask))
            if not is_on_cpu:
                # The scorer has waited for the accelerator by now, so that this look costs nothing.
                self._check(input_ids, rows, text)
            self._padding.remember(rows, text, candidates.ids, settings.keeps_tail)
            if self.trace is not None:
                before, after = step.before_and_after()
                self.trace.record(rows, candidates.ids, before, step.rewards, after)
            return step.log_probs if probe is None else torch.where(probe, scores.log_softmax(-1), step.log_probs)

    def _rewards_of(self, rows: Tensor, mask: Tensor) -> Callable[[Tensor, Tensor | None], Tensor | None]:
        """Gives rewards of candidates of the rows; see `RewardsOf`."""

        def rewards(candidates: Tensor, asked: Tensor | None) -> Tensor | None:
            places = slice(None) if asked is None else asked.to(rows.device, non_blocking=True)
            if self._prompt is not None and self._prompt.begins_a_text(rows):
                # In a rectangle, a row without tokens would be one that has finished.
                prefixes = [row[of_row.bool()] for row, of_row in zip(rows[places], mask[places], strict=True)]
                return self.scorer.score_sequences(prefixes, candidates)
            if candidates.shape[1] == 1:
                # The reward of a single candidate changes nothing.
                self.scorer.observe(rows[places], mask[places])
                return None
            if self.settings.keeps_tail is not False:
                # Texts may go on with tokens that are no candidates.
                self.scorer.observe(rows[places], mask[places])
            return self.scorer.score(rows[places], mask[places], candidates)

        return rewards

    @property
    def beta(self) -> float | Tensor:
        """The guidance strength: a number, or a column with one for each row or prompt."""
        return self.settings.beta

    @property
    def rule(self) -> CandidateRule:
        """The choice of candidates."""
        return self.settings.rule

    @property
    def rest(self) -> str | Sequence[str]:
        """Treatment of the tail of the distribution: "drop" or "keep", or a tuple of one for each row or prompt."""
        return self.settings.rest

    def with_settings(
        self,
        *,
        beta: float | Column = _UNCHANGED,
        top_k: int | Column = _UNCHANGED,
        top_p: float | Column | None = _UNCHANGED,
        min_p: float | Column | None = _UNCHANGED,
        rest: str | Sequence[str] = _UNCHANGED,
    ) -> PartialRewardLogitsProcessor:
        """Returns this processor with other settings; it shares reward model, cache and trace, and costs nothing.

        This is the way for a server in which each request has its own settings: one object is made, and each request
        gets its own processor from it. Settings that are left out stay as they are.

        Args:
            beta: As in the constructor, as are the others.
            top_k: The same.
            top_p: The same; None lifts the restriction.
            min_p: The same; None lifts the restriction.
            rest: The same.

        Raises:
            InvalidArgumentError: If a value is out of its range.

        Example:
            ```python
            strong = processor.with_settings(beta=4.0)
            each = processor.with_settings(beta=torch.tensor([0.0, 1.0, 4.0]))  # for batches of three prompts
            ```
        """
        rule = self.rule
        filters = {"top_k": (top_k, rule.top_k), "top_p": (top_p, rule.top_p), "min_p": (min_p, rule.min_p)}
        changed: dict[str, Any] = {name: old if new is _UNCHANGED else new for name, (new, old) in filters.items()}
        processor = copy.copy(self)
        processor._padding = self._padding.fresh()
        processor.settings = GuidanceSettings(
            beta=self.beta if beta is _UNCHANGED else beta,
            rule=CandidateRule(**changed),
            rest=self.rest if rest is _UNCHANGED else rest,
        )
        return processor

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
                texts. An answer to one of no tokens is judged alone, as that to a picture or to speech.
            attention_mask: 1 for text, 0 for padding in `prompt`; all text by default.
            start: Number of leading tokens of the rows that `generate` passes that are not part of the answer (the
                decoder's start token); by default as many as it passes first.

        Returns:
            A processor for these prompts, in this order, which shares reward model, cache and trace with this one. Any
            number of calls of `generate` may answer them; rows that continue none of these answers are refused. (With
            `inputs_embeds` alone, rows do not show which prompts they answer: make a new one for other prompts.)

        Raises:
            InvalidArgumentError: If texts are given and the tokenizer is unknown, or a mask does not fit.

        Example:
            ```python
            processor = PartialRewardLogitsProcessor("org/partial-rm", tokenizer=tokenizer)
            model.generate(inputs_embeds=embeddings, logits_processor=[processor.for_prompt(input_ids, attention_mask)])
            ```
        """
        if not isinstance(prompt, Tensor):
            prompt, attention_mask = tokenize_prompts(
                self.tokenizer, [prompt] if isinstance(prompt, str) else list(prompt)
            )
        mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        if mask.shape != prompt.shape:
            raise InvalidArgumentError(
                f"Expected attention_mask to have the shape {tuple(prompt.shape)} of the prompt, but got "
                f"{tuple(mask.shape)}. Pass both as the tokenizer returned them."
            )
        # A shallow copy, which shares scorer, cache, lock and trace.
        processor = copy.copy(self)
        processor._padding = self._padding.fresh()
        processor._prompt = HiddenPrompt(prompt, mask, start)
        return processor

    def _check(self, input_ids: Tensor, rows: Tensor, text: TextMask) -> None:
        """Refuses rows in which padding may be text, and rows of other prompts; waits for an accelerator."""
        if self._prompt is not None:
            self._prompt.check(input_ids)
        self._padding.check(rows, text)

    def _rows(self, input_ids: Int[Tensor, "batch passed"]) -> tuple[Int[Tensor, "batch length"], TextMask]:
        """The rows that the reward model reads, and what in them is text."""
        if self._prompt is not None:
            rows = self._prompt.followed_by(input_ids)
            return rows, self._padding.read(rows, self._prompt.mask)
        if input_ids.shape[1] == 0:
            raise PaddingError(
                "Expected the prompt's token ids, because the reward model reads the prompt, but generate was given "
                "inputs_embeds alone. Pass processor.for_prompt(input_ids, attention_mask) as the logits processor."
            )
        return input_ids, self._padding.read(input_ids, self.attention_mask)
