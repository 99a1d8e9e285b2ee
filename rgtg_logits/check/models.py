"""What the two models are, and whether their tokens and contexts fit; no model is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.check.findings import Finding
from rgtg_logits.reward_model import RewardModel

OBJECTIVES = {
    "partial_bt": ("ok", "partial_bt: every prefix of a pair"),
    "full_bt": ("note", "full_bt: finished texts only, so that its prefix rewards are untrained"),
    None: ("note", "not stated: a full-sequence RM whose prefix rewards are untrained"),
}
"""What is to be said of `config.rgtg["objective"]`."""
TRAIN = "Train one on partial sequences with rgtg train."


@dataclass(frozen=True)
class ModelPair:
    """A base model and a reward model, on one device."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel

    @property
    def pad_token_id(self) -> int | None:
        """What pads rows, as `PartialRewardLogitsProcessor(reward_model, tokenizer=tokenizer)` finds it."""
        own = self.tokenizer.pad_token_id
        return own if own is not None else self.reward_model.pad_token_id

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and continuation together that both models can read; None without a limit."""
        return min((limit for limit in self._limits() if limit is not None), default=None)

    def _limits(self) -> tuple[int | None, int | None]:
        config = self.base.config.get_text_config()
        return self.reward_model.max_length, getattr(config, "max_position_embeddings", None)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, behind the token that opens every text if the tokenizer has one."""
        ids, opening = list(self.tokenizer(prompt)["input_ids"]), self.tokenizer.bos_token_id
        return ids if opening is None or ids[:1] == [opening] else [opening, *ids]

    def describe(self) -> list[Finding]:
        """Classes, sizes, types and devices, and what the reward model was trained on."""
        reward_model = self.reward_model
        status, objective = OBJECTIVES.get(reward_model.config.objective, ("note", str(reward_model.config.objective)))
        return [
            _model("base model", self.base, f"{self.base.dtype}, {self.base.device}"),
            _model("reward model", reward_model.model, f"{reward_model.dtype}, {reward_model.device}"),
            Finding(
                "models", "kind, objective", status, f"{reward_model.config.kind}, {objective}",
                TRAIN if status == "note" else "",
            ),
        ]  # fmt: skip

    def check_vocabulary(self) -> Finding:
        """Whether token ids mean the same to both models."""
        reader, readable = self.reward_model.tokenizer, self.reward_model.vocab_size
        base = self.tokenizer.get_vocab()
        own = base if reader is None else reader.get_vocab()
        differing = sum(own.get(token) != index for token, index in base.items())
        rows = self.base.config.get_text_config().vocab_size
        figures = {"base_tokens": len(base), "reward_model_tokens": len(own), "differing_tokens": differing}
        if base != own:
            return Finding(
                "tokens", "vocabulary", "fail",
                f"different: {differing} of {len(base)} tokens of the base model have another id, or none, among the "
                f"reward model's {len(own)}", "Use a reward model trained from this base model's family.", figures,
            )  # fmt: skip
        if max(base.values()) >= readable:
            return Finding(
                "tokens", "vocabulary", "fail",
                f"the same {len(base)} tokens, but the reward model reads ids below {readable} only and some are above",
                "Resize its embeddings to the tokenizer and train it again.", figures,
            )  # fmt: skip
        if rows > readable:
            return Finding(
                "tokens", "vocabulary", "note",
                f"the same {len(base)} tokens; the base model has {rows - readable} padding rows that the reward model "
                f"lacks (ids from {readable})",
                "An error only if one of those, which stand for no token, is among the candidates.", figures,
            )  # fmt: skip
        return Finding("tokens", "vocabulary", "ok", f"the same {len(base)} tokens", figures=figures)

    def check_padding(self) -> list[Finding]:
        """Whether padding can be told from text."""
        pad, tokenizer = self.pad_token_id, self.tokenizer
        if pad is None:
            return [
                Finding(
                    "tokens", "padding", "note", "neither tokenizer names a pad token: batches of prompts of different "
                    "lengths would be refused, single prompts work",
                    "Set tokenizer.pad_token (the end-of-text token will do) and pass tokenizer= to the processor.",
                )
            ]  # fmt: skip
        value = f"token {pad}, {tokenizer.convert_ids_to_tokens(pad)!r}"
        status, advice = "ok", ""
        if tokenizer.pad_token_id is None:
            status, advice = "note", "Set tokenizer.pad_token to the same token, with which rows have to be padded."
            value += ", named by the reward model only"
        if pad == tokenizer.eos_token_id:
            value += ", also the end-of-text token"
        if pad == tokenizer.bos_token_id:
            status, advice = "note", "Pass the prompts' attention_mask= to the processor if prompts begin with it."
            value += ", which also opens texts"
        findings = [Finding("tokens", "padding", status, value, advice)]
        if tokenizer.padding_side != "left":
            findings.append(
                Finding(
                    "tokens", "padding side", "note", f"{tokenizer.padding_side}, where generate needs left",
                    "Set tokenizer.padding_side = 'left'.",
                )
            )  # fmt: skip
        return findings

    def check_context(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Finding:
        """Whether prompts and continuations fit into both contexts."""
        reader, base = (limit or "no limit" for limit in self._limits())
        limit, longest = self.max_length, max(map(len, prompts))
        wanted = f"asked for {longest} + {new_tokens}"
        origin = f"RM {reader}, base {base}"
        if limit is None:
            return Finding("context", "prompt + new", "ok", f"no limit stated; {wanted}")
        figures = {"limit": limit, "prompt": longest, "new": new_tokens}
        if longest + new_tokens > limit:
            return Finding(
                "context", "prompt + new", "fail", f"{wanted}, more than {limit} ({origin})",
                "Shorten the prompts, lower max_new_tokens, or use a model with a longer context.", figures,
            )  # fmt: skip
        shorter = limit == self.reward_model.max_length != self._limits()[1]
        return Finding(
            "context", "prompt + new", "note" if shorter else "ok", f"at most {limit} ({origin}); {wanted}",
            "Longer texts stop with an error of the reward model, not of the base model." if shorter else "", figures,
        )  # fmt: skip


def _model(name: str, model: nn.Module, where: str) -> Finding:
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count:,}"
    where = where.removeprefix("torch.")
    return Finding("models", name, "ok", f"{type(model).__name__}, {size}, {where}", "", {"parameters": count})
