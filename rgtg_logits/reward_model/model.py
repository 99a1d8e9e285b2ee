"""A reward model: a checkpoint, and how to read the reward of every prefix from it.

On disk it is an ordinary transformers checkpoint (safetensors) with one more dict in `config.json`:

    "rgtg": {"version": 1, "kind": "causal", "objective": "partial_bt", ...}

so that it loads without this library: kind "causal" is a `…ForSequenceClassification` with `num_labels=1`, and
"vocabulary" and "log_ratio" are `…ForCausalLM` models whose next-token logits are read as rewards. Of architectures for
which transformers has no sequence classifier (granite, mamba, …), `_classifiers.classifier_class` says what loads them.
A LoRA adapter has the dict in `rgtg.json` beside its weights.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rgtg_logits.errors import InvalidArgumentError, RewardModelError
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model.config import RewardModelConfig, read_config
from rgtg_logits.reward_model.forward import (
    BackboneForward,
    ClassifierForward,
    Forward,
    LanguageModelForward,
    token_scores,
    uniform_length,
)
from rgtg_logits.reward_model.loading import HUB_ARGUMENTS, check_decoder, check_labels, load_checkpoint
from rgtg_logits.reward_model.saving import SavingMixin
from rgtg_logits.tokenization import encode_finished

__all__ = ["RewardModel", "RewardModelConfig", "positions"]


class RewardModel(SavingMixin):
    """A scalar reward for every prefix of a text, read from a causal sequence classifier or from a language model.

    Args:
        model: A transformers `…ForSequenceClassification` model with `num_labels=1` and a causal backbone, for the
            kinds "vocabulary" and "log_ratio" a `…ForCausalLM` model, or one of them wrapped by PEFT. It is used as it
            is (device, dtype, quantisation) and put into evaluation mode.
        tokenizer: Its tokenizer. Needed for texts; token ids are scored without one.
        config: What the checkpoint says of itself; by default `model.config.rgtg`.

    Raises:
        RewardModelError: If the model is not of the kind that the config says, or is an encoder-decoder.

    Example:
        ```python
        rm = RewardModel.from_pretrained("org/partial-rm")
        rm.score(["The film was"], [" a delight."])  # tensor([2.31])
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        config: RewardModelConfig | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        inner = unwrap_adapter(model)
        if not isinstance(inner, PreTrainedModel):
            raise RewardModelError(
                f"Expected a transformers …ForSequenceClassification model, but got {type(inner).__name__}. "
                "Load one with RewardModel.from_pretrained or AutoModelForSequenceClassification."
            )
        self._inner = inner
        self.text_config: Any = inner.config.get_text_config()
        stored = getattr(inner.config, "rgtg", None)
        self.config = config or (RewardModelConfig.from_dict(stored) if stored else RewardModelConfig())
        check_decoder(inner.config, type(inner).__name__)
        self._forward: Forward = ClassifierForward(inner) if self.kind == "causal" else LanguageModelForward(inner)
        if self.kind == "causal":
            check_labels(inner.config, type(inner).__name__)
        self.backbone = self._forward.backbone

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        revision: str | None = None,
        **more: Any,
    ) -> RewardModel:
        """Loads a reward model from the Hub or from a folder.

        Args:
            name_or_path: A Hub id ("org/name") or a folder.
            kind: How to read the reward, where the checkpoint does not say ("log_ratio" for a model of GenARM or DPO);
                wins over what it says.
            dtype: Type of the weights; by default the checkpoint's own.
            device_map: As in transformers; the model may be spread over devices.
            quantization_config: As in transformers. The scalar head always keeps its precision. Choose a way that
                quantises weights alone, so that a reward does not depend on what is read along with it: LLM.int8() of
                bitsandbytes looks for outliers in all tokens of a batch (`llm_int8_threshold=0.0` stops that), and
                int8 activations turn rounding into steps.
            revision: Branch, tag or commit on the Hub; of an adapter, not of its base model.
            more: `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder` for the Hub, and other
                arguments of transformers' `from_pretrained`.

        Raises:
            CheckpointError: If there is no such repository or folder, if it cannot be downloaded whole, if it holds no
                safetensors weights or no trained scalar head, or if it needs code of its own (never run here).
            InvalidArgumentError: If there is no such kind, or code from a repository is to be run.
        """
        name = str(name_or_path)
        if more.pop("trust_remote_code", False):
            raise InvalidArgumentError(
                f"Expected to load {name!r} without code of its own, but got trust_remote_code=True. Load the model "
                "yourself and pass it to RewardModel."
            )
        hub = {"revision": revision, **{key: more.pop(key) for key in HUB_ARGUMENTS if key in more}}
        options = {"dtype": dtype or "auto", "device_map": device_map, "quantization_config": quantization_config}
        options = {key: value for key, value in (options | more).items() if value is not None}
        model, tokenizer, stored = load_checkpoint(name, kind, options, hub)
        config = read_config(stored, kind)
        if stored is None and config.kind == "causal":
            warnings.warn(
                f"{name!r} does not say how it was trained, so it is taken to be a reward model of finished texts: its "
                "rewards of prefixes are untrained. Train one on partial sequences with `rgtg train`.",
                stacklevel=2,
            )
        return cls(model, tokenizer, config=config)

    @property
    def kind(self) -> str:
        """How rewards are read: "causal", "vocabulary" or "log_ratio"; see `RewardModelConfig`."""
        return self.config.kind

    @property
    def head(self) -> nn.Module:
        """The scalar head.

        Raises:
            RewardModelError: If rewards are not read by one.
        """
        return self._classifier.head

    @property
    def _classifier(self) -> ClassifierForward:
        if not isinstance(self._forward, ClassifierForward):
            raise RewardModelError(
                f"Expected a reward model with a scalar head, but this one is of kind {self.kind!r} and reads rewards "
                "from logits. Use score_tokens(), or hidden_states(), which returns them."
            )
        return self._forward

    @property
    def device(self) -> torch.device:
        """Where token ids have to be, and where states and rewards come back."""
        return self._forward.device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the backbone computes."""
        return self.backbone.dtype

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        return int(self.backbone.get_input_embeddings().weight.shape[0])

    @property
    def num_next_tokens(self) -> int:
        """Number of logits of a language model, which may be fewer or more than the tokens that it can read.

        Raises:
            RewardModelError: If rewards are read by a scalar head.
        """
        if not isinstance(self._forward, LanguageModelForward):
            raise RewardModelError(
                "Expected a reward model of kind 'vocabulary' or 'log_ratio', but this one reads rewards by a scalar "
                "head and has no logits. Use vocab_size."
            )
        return self._forward.num_next_tokens

    @property
    def pad_token_id(self) -> int | None:
        """The padding token, from the tokenizer or else from the model's config."""
        token = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return token if token is not None else getattr(self.text_config, "pad_token_id", None)

    @property
    def max_length(self) -> int | None:
        """The longest prefix it can read, in tokens; None if its config sets no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def uniform_length(self) -> int | None:
        """Tokens up to which the states of a text stay as they are when it grows; None without such a limit.

        Behind it, rotary embeddings that depend on the length (LongRoPE, arXiv 2402.13753; dynamic NTK) turn all tokens
        in another way, those that a cache holds included.
        """
        return uniform_length(self.text_config)

    @property
    def sliding_window(self) -> int | None:
        """How many tokens its sliding attention layers see; None without such layers."""
        return getattr(self.text_config, "sliding_window", None)

    @property
    def layer_types(self) -> list[str] | None:
        """Kind of attention of each layer, where the config lists them."""
        return getattr(self.text_config, "layer_types", None)

    @profiled("reward model")
    def hidden_states(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Int[Tensor, "#batch new"] | None,
        cache: Cache | None = None,
        *,
        use_cache: bool = False,
        last: int | None = None,
    ) -> tuple[Float[Tensor, "batch kept width"], Cache | None]:
        """Runs the model once over new tokens.

        Args:
            input_ids: The new tokens.
            attention_mask: 1 for text, 0 for padding, those in the cache included; or an additive mask, or one for each
                type of layer, as the model takes them.
            position_ids: Position of each new token in its text; left to the model if None.
            cache: What it read before.
            use_cache: Whether to return a cache.
            last: Of how many tokens, counted from the end, to return the states; None for all.

        Returns:
            The state of each token and the cache. A state is what `rewards` reads; of the kinds "vocabulary" and
            "log_ratio", it is the logits of the next token as the model's own forward returns them.
        """
        return self._forward.states(input_ids, attention_mask, position_ids, cache, use_cache=use_cache, last=last)

    def compiled(self, **options: Any) -> RewardModel:
        """The same model, on the same weights, with a forward compiled by `torch.compile(…, **options)`."""
        twin = copy.copy(self)
        twin._forward = self._forward.compiled(**options)
        return twin

    def prepacked(self) -> RewardModel:
        """The same model, with a second copy of its linear layers' weights, laid out for the processor's instructions.

        For reading without gradients. Changes of the weights are followed, but for those that are written through
        `.data`, which leave no trace.

        Raises:
            InvalidArgumentError: If it is not on the CPU, or torch or the processor cannot do it.
        """
        twin = copy.copy(self)
        twin._forward = self._forward.prepacked()
        return twin

    @torch.no_grad()
    def split_output_layer(self) -> tuple[RewardModel, nn.Linear] | None:
        """A language model without its output layer, and that layer: logits of a few tokens then cost no more.

        Returns:
            The same model, whose states are now those of the last layer, and the linear layer; None if its logits are
            anything but that layer on those states (capped, scaled or quantised ones), which a number decides.
        """
        layer = self._inner.get_output_embeddings()
        if self.kind == "causal" or type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
            return None
        twin = copy.copy(self)
        twin._forward = BackboneForward(self._inner)
        rows = torch.arange(1, min(9, self.vocab_size), device=self.device)[None]
        wanted, _ = self.hidden_states(rows, None, None)
        got = layer(twin.hidden_states(rows, None, None)[0].to(layer.weight.device))
        # Equal to the last bit: a cap far above the logits of a few tokens changes nothing else of them.
        same = torch.equal(got.float(), wanted.to(got.device, torch.float32))
        return (twin, layer) if same else None

    @profiled("head")
    def rewards(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        """Reads rewards (float32, the model's own unit) from states of the last layer.

        Raises:
            RewardModelError: If the model has no scalar head.
        """
        return self._classifier.rewards(hidden)

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length"]:
        """The reward of every prefix of every row, in one forward.

        "causal": the head on each token's state. "vocabulary": the logit of each token behind the tokens before it.
        "log_ratio": the sum of the log-probabilities of the tokens so far, without any reference model. Of the last
        two, the first token of a text has nothing before it and gets 0.

        Args:
            input_ids: Token ids, padded on either side.
            attention_mask: 1 for text, 0 for padding; all text by default.

        Returns:
            Rewards in the model's own unit; entry (b, t) is the reward of row b up to and with token t. 0 at padding.
        """
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        states, _ = self.hidden_states(input_ids, mask, positions(mask))
        if self.kind == "causal":
            return self.rewards(states).masked_fill(mask == 0, 0.0)
        scores = token_scores(states, input_ids, mask, log_softmax=self.kind == "log_ratio")
        return scores if self.kind == "vocabulary" else scores.cumsum(-1).masked_fill(mask == 0, 0.0)

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 16
    ) -> Float[Tensor, " batch"]:
        """The rewards of finished texts.

        Each text is prompt + response, tokenised in one go and closed with one end of text, as in training (see
        `tokenization.encode_finished`); its reward is the last one of `score_tokens`. With "log_ratio" that sums over
        the prompt too, so it compares responses to one prompt.

        Raises:
            InvalidArgumentError: If the lists differ in length, or the model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with a tokenizer, because score() reads text, but it has none. "
                "Pass tokenizer= to RewardModel, or use score_tokens()."
            )
        if len(prompts) != len(responses):
            raise InvalidArgumentError(
                f"Expected one response for each prompt, but got {len(prompts)} prompts and {len(responses)} responses."
            )
        rows = [
            encode_finished(self.tokenizer, prompt + response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = [self._score_finished(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return torch.cat(scores) if scores else torch.empty(0)

    def _score_finished(self, rows: list[list[int]]) -> Float[Tensor, " batch"]:
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        input_ids = torch.zeros_like(mask)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
        return self.score_tokens(input_ids, mask).cpu().gather(1, lengths[:, None] - 1)[:, 0]


def positions(mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Position of each token in its own text; padding on the left counts for nothing.

    Passed explicitly because models with learned positions count slots, padding included, when left to themselves.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def unwrap_adapter(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, with the adapter in its layers; or the model itself.

    Raises:
        RewardModelError: If the adapter is one of prompt learning, outside the model's layers.
    """
    if isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model"):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise RewardModelError(
            "Expected an adapter inside the model's layers, such as LoRA, but got one of learned prompts, which it "
            "puts before every text. Train a LoRA adapter."
        )
    return cast(Any, model).get_base_model()
