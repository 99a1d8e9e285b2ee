"""What the two models are, and whether their tokens and contexts fit; no model is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.check.findings import Finding
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model import RewardModel, RewardModelConfig
from rgtg_logits.scorers import Retokenizer
from rgtg_logits.tokenization import differing_tokens, encode_prompt

LANGUAGE_MODELS = {
    "vocabulary": "its logits are the rewards of next tokens",
    "log_ratio": "its log-probabilities are the rewards of next tokens",
}
"""How the rewards of a language model are read, by its kind."""
TRAIN = "Train one on partial sequences with rgtg train."
MAKE_SURE = "Make sure that it was trained on partial sequences, as rgtg train does."


@dataclass(frozen=True)
class ModelPair:
    """A base model and a reward model, on one device.

    Attributes:
        base: The base model.
        tokenizer: Its tokenizer.
        reward_model: The reward model.
        prompt_format: "chat" if the reward model is to read chats; None for the text as it is.

    Raises:
        InvalidArgumentError: If the reward model cannot read what `prompt_format` says.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel
    prompt_format: str | None = None

    def __post_init__(self) -> None:
        if self.prompt_format is not None and self.reward_model.kind != "causal":
            raise InvalidArgumentError(
                "Expected a reward model of kind causal, because it is to read chats, but got one of kind "
                f"{self.reward_model.kind}, which scores its own next tokens. Leave --prompt-format out."
            )
        if self.prompt_format is not None:
            # Before any model is run, because it asks both chat templates.
            self._chat_lengths([self.encode("Hello")])

    @cached_property
    def _writer(self) -> Retokenizer:
        """What puts chats for the reward model."""
        if self.reward_model.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with its tokenizer, because it is to read chats, but it came without one. "
                "Save the tokenizer with the model."
            )
        return Retokenizer(self.tokenizer, self.reward_model.tokenizer, self.prompt_format)

    @cached_property
    def differing_tokens(self) -> int:
        """How many tokens of the base model have another id among the reward model's, or none."""
        rm_tokenizer = self.reward_model.tokenizer
        return 0 if rm_tokenizer is None else differing_tokens(self.tokenizer, rm_tokenizer)

    @property
    def reads_text(self) -> bool:
        """Whether the reward model reads text, because its tokens are others or it wants them put otherwise."""
        return self.reward_model.kind == "causal" and (self.differing_tokens > 0 or self.prompt_format is not None)

    @property
    def pad_token_id(self) -> int | None:
        """What pads rows, as `PartialRewardLogitsProcessor(reward_model, tokenizer=tokenizer)` finds it."""
        own = self.tokenizer.pad_token_id
        return own if own is not None or self.reads_text else self.reward_model.pad_token_id

    @property
    def _own_vocabulary(self) -> dict[str, int]:
        reader = self.reward_model.tokenizer
        return self.tokenizer.get_vocab() if reader is None else reader.get_vocab()

    @property
    def _limits(self) -> tuple[int | None, int | None]:
        """The contexts of the reward model and the base model."""
        config = self.base.config.get_text_config()
        return self.reward_model.max_length, getattr(config, "max_position_embeddings", None)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, behind the token that opens every text if the tokenizer has one.

        For a reward model that reads chats, of a chat that the prompt begins, if the base model has a template for it.
        """
        if self.prompt_format is not None and self.tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": prompt}]
            found = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
            return list(found["input_ids"])
        ids, opening = encode_prompt(self.tokenizer, prompt), self.tokenizer.bos_token_id
        return ids if opening is None or ids[:1] == [opening] else [opening, *ids]

    def room(self, prompts: Sequence[Sequence[int]]) -> int | None:
        """New tokens that fit behind the prompts in both contexts; None without a limit.

        Where the reward model reads text, what fits in its context is an estimate; see `_read`.
        """
        return min((room for room in self._rooms(prompts) if room is not None), default=None)

    def _rooms(self, prompts: Sequence[Sequence[int]]) -> tuple[int | None, int | None]:
        """The same in each context."""
        (own, base), (read, growth) = self._limits, self._read(prompts)
        return (
            None if own is None else int((own - read) / growth),
            None if base is None else base - max(map(len, prompts)),
        )

    def describe(self) -> list[Finding]:
        """Classes, sizes, types and devices, and what the reward model was trained on."""
        reward_model = self.reward_model
        return [
            _model("base model", self.base, f"{self.base.dtype}, {self.base.device}"),
            _model("reward model", reward_model.model, f"{reward_model.dtype}, {reward_model.device}"),
            self._objective(),
        ]

    def _objective(self) -> Finding:
        """How rewards are read, and whether those of prefixes were trained."""
        config = self.reward_model.config
        text = config.kind
        if config.kind in LANGUAGE_MODELS:
            text += f": {LANGUAGE_MODELS[config.kind]}"
        if config.reference is not None:
            text += f", less those of {config.reference}"
        objective, advice = _describe_objective(config)
        text += f"; {objective}" if objective else ""
        return Finding("models", "kind, objective", "note" if advice else "ok", text, advice)

    def check_vocabulary(self) -> Finding:
        """Whether token ids mean the same to both models, or the reward model reads text."""
        base, own, differing = self.tokenizer.get_vocab(), self._own_vocabulary, self.differing_tokens
        rows, readable = self.base.config.get_text_config().vocab_size, self._readable
        figures = {"base_tokens": len(base), "reward_model_tokens": len(own), "differing_tokens": differing}
        different = (
            f"different: {differing} of {len(base)} tokens of the base model have another id, or none, among the "
            f"reward model's {len(own)}"
        )
        if differing and not self.reads_text:
            return Finding(
                "tokens", "vocabulary", "fail",
                f"{different}, and a model of kind {self.reward_model.kind} scores its own next tokens",
                "Use a reward model trained from this base model's family.", figures,
            )  # fmt: skip
        if max((own if differing else base).values()) >= readable:
            whose = f"{different}, which it reads as text" if differing else f"the same {len(base)} tokens"
            return Finding(
                "tokens", "vocabulary", "fail",
                f"{whose}, but the reward model reads ids below {readable} only and some are above",
                "Resize its embeddings to the tokenizer and train it again.", figures,
            )  # fmt: skip
        if self.prompt_format is not None:
            return Finding(
                "tokens", "vocabulary", "note",
                f"{different if differing else f'the same {len(base)} tokens'}. It reads chats (RetokenizingScorer), "
                "for top_k tokenisations per token",
                f"Pass tokenizer= and prompt_format={self.prompt_format!r} to the processor.", figures,
            )  # fmt: skip
        if differing:
            return Finding(
                "tokens", "vocabulary", "note",
                f"{different}. It reads text (RetokenizingScorer), for top_k tokenisations per token",
                "Pass tokenizer= to the processor, which takes ids to mean the same in both otherwise. If it was "
                "trained on chats, check again with --prompt-format chat.", figures,
            )  # fmt: skip
        if rows > readable:
            return Finding(
                "tokens", "vocabulary", "note",
                f"the same {len(base)} tokens; the base model has {rows - readable} padding rows that the reward model "
                f"lacks (ids from {readable})",
                "An error only if one of those, which stand for no token, is among the candidates.", figures,
            )  # fmt: skip
        return Finding("tokens", "vocabulary", "ok", f"the same {len(base)} tokens", figures=figures)

    @property
    def _readable(self) -> int:
        """Number of token ids that the reward model can read, and score where it scores next tokens."""
        reader = self.reward_model
        return reader.vocab_size if reader.kind == "causal" else min(reader.vocab_size, reader.num_next_tokens)

    def check_padding(self) -> list[Finding]:
        """Whether padding can be told from text."""
        pad, tokenizer = self.pad_token_id, self.tokenizer
        if pad is None:
            unknown = "the base model's tokenizer names no" if self.reads_text else "neither tokenizer names a"
            return [
                Finding(
                    "tokens", "padding", "note", f"{unknown} pad token: batches of prompts of different "
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
        (own, base), longest, (read, growth) = self._limits, max(map(len, prompts)), self._read(prompts)
        limits = [limit for limit in (own, base) if limit is not None]
        wanted = f"asked for {longest} + {new_tokens}"
        figures = {"limit": min(limits, default=None), "prompt": longest, "new": new_tokens}
        if self.reads_text:
            most = f"RM {own or 'no limit'} in the reward model's own tokens, base {base or 'no limit'}"
            wanted += f", where the RM reads {read} + about {ceil(new_tokens * growth)}"
            figures = {**figures, "limit": base, "reward_model_limit": own, "reward_model_prompt": read}
        else:
            most = f"at most {min(limits, default='no limit')} (RM {own or 'no limit'}, base {base or 'no limit'})"
        if not limits:
            return Finding("context", "prompt + new", "ok", f"no limit stated; {wanted}")
        if new_tokens > (self.room(prompts) or 0):
            return Finding(
                "context", "prompt + new", "fail", f"{most}; {wanted}, which is too long",
                "Shorten the prompts, lower max_new_tokens, or use a model with a longer context.", figures,
            )  # fmt: skip
        read_room, base_room = self._rooms(prompts)
        shorter = read_room is not None and (base_room is None or read_room < base_room)
        advice = (
            "Longer texts stop with an error of the reward model, not of the base model, unless the processor is told "
            "on_overflow='truncate_left'."
        )
        return Finding(
            "context", "prompt + new", "note" if shorter else "ok", f"{most}; {wanted}", advice if shorter else "",
            figures,
        )  # fmt: skip

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[int, float]:
        """Most tokens that the reward model reads of a prompt, and about how many of each further base token."""
        reader = self.reward_model.tokenizer
        if not self.reads_text or reader is None:
            return max(map(len, prompts)), 1.0
        texts = [self.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        counts = [len(reader(text, verbose=False)["input_ids"]) for text in texts]
        if self.prompt_format is None:
            return max(counts), max(1, sum(counts)) / sum(map(len, prompts))
        # What a template adds does not grow with the answer.
        own = sum(len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts)
        return max(self._chat_lengths(prompts)), max(1, sum(counts)) / max(1, own)

    def _chat_lengths(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """How many tokens the reward model reads of each prompt, put as it wants them."""
        nothing: list[list[int]] = [[] for _ in prompts]
        return [len(row.prefix) for row in self._writer.encode([list(prompt) for prompt in prompts], nothing, nothing)]


def _describe_objective(config: RewardModelConfig) -> tuple[str, str]:
    """The training objective in words, and advice where rewards of prefixes may mean nothing."""
    name, objective = config.objective, OBJECTIVES.get(config.objective or "")
    if objective is not None and config.kind not in objective.kinds:
        kinds = " or ".join(objective.kinds)
        return (
            f"{name}: {objective.trained_on}, for the kind {kinds}",
            f"Read it as the kind that it was trained for: --kind {objective.kinds[0]}.",
        )
    if objective is not None and not objective.scores_prefixes:
        return f"{name}: {objective.trained_on}, so its prefix rewards are untrained", TRAIN
    if objective is not None:
        return f"{name}: {objective.trained_on}", ""
    # A language model's own probabilities give every prefix a reward, whatever it was trained on.
    if config.kind in LANGUAGE_MODELS:
        return name or "", ""
    if name is not None:
        return f"{name}: an objective that this version does not know", MAKE_SURE
    return "objective not stated: taken to be a full-sequence RM, whose prefix rewards are untrained", TRAIN


def _model(name: str, model: nn.Module, where: str) -> Finding:
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count:,}"
    where = where.removeprefix("torch.")
    return Finding("models", name, "ok", f"{type(model).__name__}, {size}, {where}", "", {"parameters": count})
