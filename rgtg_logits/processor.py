"""The plug-in: candidates -> reward -> formula, once per token of `generate`."""

from __future__ import annotations

import math
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.candidates import CandidateRule
from rgtg_logits.errors import InvalidArgumentError, PaddingError, VocabularyError
from rgtg_logits.guidance import guide, spread, truncate
from rgtg_logits.prefix import text_mask
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers import CausalScorer, Scorer
from rgtg_logits.trace import Trace


class PartialRewardLogitsProcessor(LogitsProcessor):
    r"""Draws every token from the reward-guided policy `pi_ref · exp(beta · reward)`.

    At each step the candidates (the top-k next tokens of the base model) are scored by a reward model that was trained
    on partial sequences, in one cached forward, and the scores become

        log pi(v | x, y_<t) = log pi_ref(v | x, y_<t) + beta · r(x, y_<t, v) − log Z

    over the candidates and -inf elsewhere (Rashid et al., arXiv 2406.07780). Works wherever `generate` takes
    `logits_processor=`: greedy, sampling, beams, several return sequences, left-padded batches, pipelines, assisted
    decoding, and one object for any number of calls.

    Args:
        reward_model: A Hub id or a folder, a `RewardModel`, a transformers `…ForSequenceClassification` model with one
            label, or any `Scorer`. A loaded model is used as it is.
        beta: Guidance strength in nats per unit of reward. 0 is the base model cut to the candidates, and costs no
            reward model call; 1 to 4 is typical for rewards with a spread of about one; with larger values the reward
            decides and the base model fades. It is 1/β of KL-regularised RLHF. `generate` applies its temperature T
            afterwards, which makes it beta / T.
        top_k: How many candidates; see `CandidateRule`. `generate` in sampling mode cuts to its own `top_k=50`
            afterwards, which changes nothing as long as it is not smaller.
        top_p: Cut the candidates to this share of the base model's probability.
        min_p: Cut the candidates to those at least this fraction as probable as the best.
        tokenizer: The base model's tokenizer. Its vocabulary is compared with the reward model's. Left out, token ids
            are taken to mean the same in both.
        pad_token_id: The token that pads rows on the left; by default the tokenizer's, or else the reward model's.
        attention_mask: The prompt's mask, for prompts in which the pad token also leads the text (pad == bos). A
            processor that has one is for those prompts only.
        trace: Where to record what happened at each step.

    Raises:
        InvalidArgumentError: If a value is out of its range, or `reward_model` is nothing known.
        CheckpointError: If a Hub id or folder cannot be loaded.
        RewardModelError: If the model cannot give rewards of prefixes.
        VocabularyError: If the reward model does not share the base model's tokens.

    Example:
        ```python
        processor = PartialRewardLogitsProcessor("org/partial-rm", beta=1.5, top_k=20)
        model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[processor])
        ```
    """

    supports_continuous_batching = False
    """Continuous batching would show one token of each row; transformers says so instead."""

    def __init__(
        self,
        reward_model: str | os.PathLike[str] | RewardModel | PreTrainedModel | Scorer,
        *,
        beta: float = 1.0,
        top_k: int = 20,
        top_p: float | None = None,
        min_p: float | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        pad_token_id: int | None = None,
        attention_mask: Int[Tensor, "prompts length"] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.beta = _checked_beta(beta)
        self.rule = CandidateRule(top_k=top_k, top_p=top_p, min_p=min_p)
        self.scorer = _scorer(reward_model, tokenizer)
        self.trace = trace
        self.attention_mask = attention_mask
        known = (pad_token_id, getattr(tokenizer, "pad_token_id", None), self.scorer.pad_token_id)
        self.pad_token_id = next((token for token in known if token is not None), None)

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Guides one step.

        Args:
            input_ids: Prefixes, left padding included.
            scores: The base model's logits or log-probabilities; not edited.

        Returns:
            Log-probabilities renormalised over the candidates, -inf elsewhere; a new tensor.

        Raises:
            PaddingError: If padding cannot be told from text.
            VocabularyError: If the reward model does not have a candidate.
            ContextLengthError: If a prefix is longer than the reward model can read.
            NonFiniteRewardError: If a reward is NaN or infinite.
        """
        candidates = self.rule.select(scores)
        base = truncate(candidates)
        guided, rewards = base, None
        # One candidate is drawn whatever its reward, so there is nothing to ask.
        if self.beta > 0 and candidates.ids.shape[1] > 1:
            rewards = self.scorer.score(input_ids, self._text_mask(input_ids), candidates.ids)
            guided = guide(candidates, rewards, self.beta)
        if self.trace is not None:
            self.trace.record(input_ids, candidates.ids, base, rewards, guided)
        return spread(candidates, guided, like=scores)

    def _text_mask(self, rows: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        if rows.shape[1] == 0:
            raise PaddingError(
                "Expected the prompt's token ids, because the reward model reads the prompt, but generate was given "
                "inputs_embeds alone. Pass input_ids as well."
            )
        return text_mask(rows, self.pad_token_id, self.attention_mask)


def _checked_beta(beta: float) -> float:
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta >= 0):
        raise InvalidArgumentError(
            f"Expected beta to be a finite guidance strength of 0 or more, but got {beta!r}. "
            "Use 0 for no guidance; to lower a reward, change its sign in the reward model."
        )
    return float(beta)


def _scorer(source: object, tokenizer: PreTrainedTokenizerBase | None) -> Scorer:
    if isinstance(source, Scorer):
        return source
    if isinstance(source, (str, os.PathLike)):
        source = RewardModel.from_pretrained(source)
    elif isinstance(source, torch.nn.Module):
        source = RewardModel(source)
    if not isinstance(source, RewardModel):
        raise InvalidArgumentError(
            "Expected reward_model to be a Hub id, a folder, a RewardModel, a …ForSequenceClassification model or a "
            f"Scorer, but got {type(source).__name__}."
        )
    _check_same_vocabulary(tokenizer, source)
    return CausalScorer(source)


def _check_same_vocabulary(tokenizer: PreTrainedTokenizerBase | None, reward_model: RewardModel) -> None:
    if tokenizer is None or reward_model.tokenizer is None:
        return
    base, own = tokenizer.get_vocab(), reward_model.tokenizer.get_vocab()
    if base != own:
        differing = sum(own.get(token) != index for token, index in base.items())
        raise VocabularyError(
            f"Expected the base model and the reward model to share a vocabulary, but {differing} of {len(base)} "
            f"tokens of the base model have another id, or none, in the reward model's vocabulary of {len(own)}. "
            "Use a reward model trained from this base model's family."
        )
