"""A reward model: a checkpoint, and how the reward of every prefix is read from it.

On disk it is an ordinary transformers checkpoint (safetensors) with one more dict in `config.json`:

    "rgtg": {"version": 1, "kind": "causal", "objective": "partial_bt", ...}

so that it loads without this library: kind "causal" is a `…ForSequenceClassification` with `num_labels=1`, and
"vocabulary" and "log_ratio" are `…ForCausalLM` models whose next-token logits are read as rewards. For architectures
without a sequence classifier in transformers (granite, mamba, …), see `classifiers.classifier_class`. A LoRA adapter
has the dict in `rgtg.json` beside its weights.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.errors import InvalidArgumentError, RewardModelError
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model.causality import check_causality
from rgtg_logits.reward_model.config import RewardModelConfig, read_config
from rgtg_logits.reward_model.forward import (
    BackboneForward,
    ClassifierForward,
    Forward,
    LanguageModelForward,
    weight_dtypes,
)
from rgtg_logits.reward_model.loading import HUB_ARGUMENTS, check_decoder, check_labels, load_checkpoint
from rgtg_logits.reward_model.rotations import context_length, uniform_length
from rgtg_logits.reward_model.saving import SavingMixin
from rgtg_logits.reward_model.scoring import ScoringMixin
from rgtg_logits.reward_model.state import Layers, evaluation_twins
from rgtg_logits.reward_model.unwrapping import unwrap_adapter, unwrap_parallel
from rgtg_logits.reward_model.views import ViewsMixin


class RewardModel(SavingMixin, ScoringMixin, ViewsMixin):
    """A scalar reward for every prefix of a text, read from a causal sequence classifier or from a language model.

    Args:
        model: A transformers `…ForSequenceClassification` model with `num_labels=1` and a causal backbone, for the
            kinds "vocabulary" and "log_ratio" a `…ForCausalLM` model, or one of them wrapped by PEFT, `torch.compile`
            or `DataParallel`. It is used as it is (device, dtype, quantisation). Rewards are those of evaluation mode,
            and a model in training mode stays in it.
        tokenizer: Its tokenizer. Needed for texts; token ids are scored without one.
        config: How rewards are read, and how the model was trained; by default `model.config.rgtg`.

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
        model = unwrap_parallel(model)
        self.model = model
        self._layers = Layers(model)
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
            kind: How to read the reward, where the checkpoint does not say ("log_ratio" for a model of GenARM or DPO).
                It overrides the kind that the checkpoint says.
            dtype: Type of the weights; by default the checkpoint's own.
            device_map: As in transformers; the model may be spread over devices.
            quantization_config: As in transformers. The scalar head always keeps its precision. Choose a method that
                quantises weights alone, so that a reward does not depend on the other rows of its batch: LLM.int8() of
                bitsandbytes looks for outliers in all tokens of a batch (`llm_int8_threshold=0.0` stops that), and
                int8 activations turn rounding into steps.
            revision: Branch, tag or commit on the Hub; for an adapter, its own and not its base model's.
            more: `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder` for the Hub, and other
                arguments of transformers' `from_pretrained`.

        Raises:
            CheckpointError: If there is no such repository or folder, if it cannot be downloaded whole, if it holds no
                safetensors weights or no trained scalar head, or if it needs code of its own (never run here).
            InvalidArgumentError: If there is no such kind, or `trust_remote_code=True` is passed.
            RewardModelError: If the model reads in both directions, as encoders do; see `check_causality`.
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
        model, tokenizer, stored, layout = load_checkpoint(name, kind, options, hub)
        config = read_config(stored, kind)
        if stored is None:
            config = replace(config, scale=layout.scale, offset=layout.offset)
        if stored is None and config.kind == "causal":
            warnings.warn(
                f"{name!r} does not say how it was trained, so it is taken to be a reward model of finished texts: its "
                "rewards of prefixes are untrained. Train one on partial sequences with `rgtg train`.",
                stacklevel=2,
            )
        reward_model = cls(model, tokenizer, config=config)
        check_causality(reward_model)
        return reward_model

    @property
    def kind(self) -> str:
        """How rewards are read: "causal", "vocabulary" or "log_ratio"; see `RewardModelConfig`."""
        return self.config.kind

    @property
    def head(self) -> nn.Module:
        """The scalar head.

        Raises:
            RewardModelError: If the kind of reward has none.
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
        """The device of token ids, states and rewards."""
        return self._forward.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the backbone computes."""
        return self.backbone.dtype

    @property
    def vocab_size(self) -> int:
        """Number of rows in the table of token embeddings."""
        return int(self.backbone.get_input_embeddings().weight.shape[0])

    @property
    def num_next_tokens(self) -> int:
        """Number of logits of a language model, which may be fewer or more than `vocab_size`.

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
        """The model's context in tokens; None if its config sets no limit."""
        return context_length(self.text_config)

    @property
    def uniform_length(self) -> int | None:
        """Number of tokens up to which the states of a text stay the same when it grows; None without such a limit.

        Beyond it, rotary embeddings that depend on the length (LongRoPE, arXiv 2402.13753; dynamic NTK) rotate all
        tokens differently, those in a cache included.
        """
        return uniform_length(self.text_config)

    @property
    def sliding_window(self) -> int | None:
        """Window of the sliding attention layers in tokens; None without such layers."""
        return getattr(self.text_config, "sliding_window", None)

    @property
    def layer_types(self) -> list[str] | None:
        """Type of attention of each layer, where the config lists them."""
        return getattr(self.text_config, "layer_types", None)

    def state(self) -> list[object]:
        """Everything that rewards depend on besides the text: weights, active adapters, …; see `Layers.state`."""
        return self._layers.state()

    def in_evaluation_mode(self) -> nn.Module:
        """The model, or in training mode a twin of it in evaluation mode; see `Layers.in_evaluation_mode`.

        A head in another precision than the backbone takes the backbone's states.
        """
        if self.kind == "causal" and len(weight_dtypes(self.model)) > 1:
            twins = evaluation_twins(self.model)
            self._classifier.cast_states(twins[self.head])
            return twins[self.model]
        return self._layers.in_evaluation_mode()

    @profiled("reward model")
    def hidden_states(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Int[Tensor, "#batch new"] | None,
        cache: Cache | None = None,
        *,
        use_cache: bool = False,
        last: int | Int[Tensor, " kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch kept width"], Cache | None]:
        """Runs the model once over new tokens.

        Args:
            input_ids: The new tokens.
            attention_mask: 1 for text, 0 for padding, for the tokens in the cache and the new ones; or an additive
                mask, or one mask for each type of layer, as the model takes them.
            position_ids: Position of each new token in its text; left to the model if None.
            cache: Keys and values of the tokens before.
            use_cache: Whether to return a cache.
            last: Return the states of the last so many new tokens only, or of those at these indices; None for all.

        Returns:
            The state of each token, and the cache. Of the kind "causal", a state is the last hidden state, from which
            `rewards` reads the reward; of the kinds "vocabulary" and "log_ratio", it is the logits of the next token,
            as the model's own forward returns them.
        """
        return self._forward.states(input_ids, attention_mask, position_ids, cache, use_cache=use_cache, last=last)

    @torch.no_grad()
    def split_output_layer(self) -> tuple[RewardModel, nn.Linear] | None:
        """Splits a language model into its backbone and its output layer, so that a few logits cost only a few rows.

        Returns:
            The same model, whose states are now the last hidden states, and the linear layer. None if its logits are
            anything but that layer on those states (capped, scaled or quantised logits), which is found by comparing
            the numbers of one forward.
        """
        layer = self._inner.get_output_embeddings()
        if self.kind == "causal" or type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
            return None
        backbone = self._with_forward(BackboneForward(self._inner))
        probe = torch.arange(1, min(9, self.vocab_size), device=self.device)[None]
        logits, _ = self.hidden_states(probe, None, None)
        states, _ = backbone.hidden_states(probe, None, None)
        split_logits = layer(states.to(layer.weight.device))
        # Compared to the last bit, because a cap far above the logits of a few tokens changes nothing but that.
        is_same = torch.equal(split_logits.float(), logits.to(split_logits.device, torch.float32))
        return (backbone, layer) if is_same else None

    @profiled("head")
    def rewards(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        """Reads rewards (float32, in the model's own unit) from last hidden states; see `RewardModelConfig.scale`.

        Raises:
            RewardModelError: If the model has no scalar head.
        """
        outputs = self._classifier.rewards(hidden)
        scale, offset = self.config.scale, self.config.offset
        return outputs if (scale, offset) == (1.0, 0.0) else outputs * scale + offset
