"""A base model and a reward model: their description, and whether tokens and contexts fit; no model is run."""

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
from rgtg_logits.scorers import Retokenizer, checked_eos_token_ids
from rgtg_logits.tokenization import SharedVocabulary, encode_prompt, shared_vocabulary

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
        InvalidArgumentError: If the reward model cannot read texts of this format.
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
            # Renders both chat templates, so that a missing one is an error before any model is run.
            self._chat_lengths([self.encode("Hello")])

    @cached_property
    def _retokenizer(self) -> Retokenizer:
        """Renders chats for the reward model, and tokenises them."""
        if self.reward_model.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with its tokenizer, because it is to read chats, but it came without one. "
                "Save the tokenizer with the model."
            )
        return Retokenizer(
            self.tokenizer, self.reward_model.tokenizer, self.prompt_format, eos_token_ids=self.eos_token_ids
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the base model's text, by its generation config."""
        return checked_eos_token_ids(getattr(self.base.generation_config, "eos_token_id", None))

    @cached_property
    def shared_vocabulary(self) -> SharedVocabulary:
        """The base model's tokens beside the reward model's."""
        return shared_vocabulary(self.tokenizer, self.reward_model.tokenizer, self.eos_token_ids)

    @property
    def reads_text(self) -> bool:
        """Whether the reward model reads text, because its tokens or its prompt format differ from the base model's."""
        return self.reward_model.kind == "causal" and (
            not self.shared_vocabulary.shares_ids or self.prompt_format is not None
        )

    @property
    def pad_token_id(self) -> int | None:
        """The token that pads rows, as `PartialRewardLogitsProcessor(reward_model, tokenizer=tokenizer)` finds it."""
        pad_token_id = self.tokenizer.pad_token_id
        if pad_token_id is None and not self.reads_text:
            return self.reward_model.pad_token_id
        return pad_token_id

    @property
    def rm_vocabulary(self) -> dict[str, int]:
        """The reward model's tokens; without a tokenizer of its own, the base model's."""
        rm_tokenizer = self.reward_model.tokenizer
        return self.tokenizer.get_vocab() if rm_tokenizer is None else rm_tokenizer.get_vocab()

    @property
    def _base_limit(self) -> int | None:
        """The context of the base model; None without a limit."""
        return getattr(self.base.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt, behind the BOS token if the tokenizer has one.

        For a reward model that reads chats, tokens of a chat with the prompt as its first message, if the base model
        has a chat template.
        """
        if self.prompt_format is not None and self.tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": prompt}]
            encoded = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        ids = encode_prompt(self.tokenizer, prompt)
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def room(self, prompts: Sequence[Sequence[int]]) -> int | None:
        """New tokens that fit behind the prompts in both contexts; None without a limit.

        Where the reward model reads text, its room is an estimate; see `_rm_lengths`.
        """
        rooms = [room for room in self._rooms(prompts) if room is not None]
        return min(rooms, default=None)

    def _rooms(self, prompts: Sequence[Sequence[int]]) -> tuple[int | None, int | None]:
        """New tokens that fit behind the prompts in the reward model's context, and in the base model's."""
        rm_limit = self.reward_model.max_length
        rm_room = None
        if rm_limit is not None:
            rm_length, growth = self._rm_lengths(prompts)
            rm_room = int((rm_limit - rm_length) / growth)
        base_limit = self._base_limit
        base_room = None if base_limit is None else base_limit - max(map(len, prompts))
        return rm_room, base_room

    def describe(self) -> list[Finding]:
        """Findings on classes, sizes, types and devices, and on what the reward model was trained on."""
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

    @property
    def readable(self) -> int:
        """Number of token ids that the reward model can read, and score if it scores next tokens."""
        vocab_size = self.reward_model.vocab_size
        if self.reward_model.kind == "causal":
            return vocab_size
        return min(vocab_size, self.reward_model.num_next_tokens)

    def check_context(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Finding:
        """Whether prompts and continuations fit into both contexts."""
        rm_limit = self.reward_model.max_length
        base_limit = self._base_limit
        limits = [limit for limit in (rm_limit, base_limit) if limit is not None]
        shortest = min(limits, default=None)
        longest = max(map(len, prompts))
        request = f"asked for {longest} + {new_tokens}"
        figures = {"limit": shortest, "prompt": longest, "new": new_tokens}
        most = f"at most {shortest or 'no limit'} (RM {rm_limit or 'no limit'}, base {base_limit or 'no limit'})"
        if self.reads_text:
            rm_length, growth = self._rm_lengths(prompts)
            request += f", where the RM reads {rm_length} + about {ceil(new_tokens * growth)}"
            figures |= {"limit": base_limit, "reward_model_limit": rm_limit, "reward_model_prompt": rm_length}
            most = f"RM {rm_limit or 'no limit'} in the reward model's own tokens, base {base_limit or 'no limit'}"
        if not limits:
            return Finding("context", "prompt + new", "ok", f"no limit stated; {request}")
        if new_tokens > (self.room(prompts) or 0):
            return Finding(
                "context", "prompt + new", "fail", f"{most}; {request}, which is too long",
                "Shorten the prompts, lower max_new_tokens, or use a model with a longer context.", figures,
            )  # fmt: skip
        rm_room, base_room = self._rooms(prompts)
        is_shorter = rm_room is not None and (base_room is None or rm_room < base_room)
        advice = (
            "Longer texts stop with an error of the reward model, not of the base model, unless the processor is told "
            "on_overflow='truncate_left'."
        )
        return Finding(
            "context", "prompt + new", "note" if is_shorter else "ok", f"{most}; {request}",
            advice if is_shorter else "",
            figures,
        )  # fmt: skip

    def _rm_lengths(self, prompts: Sequence[Sequence[int]]) -> tuple[int, float]:
        """Tokens that the reward model reads of the longest prompt, and about how many of each further base token."""
        rm_tokenizer = self.reward_model.tokenizer
        if not self.reads_text or rm_tokenizer is None:
            return max(map(len, prompts)), 1.0
        texts = [self.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        rm_counts = [len(rm_tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        if self.prompt_format is None:
            return max(rm_counts), max(1, sum(rm_counts)) / sum(map(len, prompts))
        # Counted without the chat templates, because their tokens do not grow with the answer.
        base_counts = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return max(self._chat_lengths(prompts)), max(1, sum(rm_counts)) / max(1, sum(base_counts))

    def _chat_lengths(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Tokens that the reward model reads of each prompt, rendered by its chat template."""
        nothing: list[list[int]] = [[] for _ in prompts]
        encoded = self._retokenizer.encode([list(prompt) for prompt in prompts], nothing, nothing)
        return [len(row.prefix) for row in encoded]


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


def _model(name: str, model: nn.Module, placement: str) -> Finding:
    count = sum(parameter.numel() for parameter in model.parameters())
    if count >= 1e9:
        size = f"{count / 1e9:.1f}B"
    elif count >= 1e6:
        size = f"{count / 1e6:.1f}M"
    else:
        size = f"{count:,}"
    value = f"{type(model).__name__}, {size}, {placement.removeprefix('torch.')}"
    return Finding("models", name, "ok", value, "", {"parameters": count})
