"""Sequence classifiers of every causal architecture, also of those for which transformers ships none."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from rgtg_logits.errors import CheckpointError, RewardModelError


class _Classifier(GenericForSequenceClassification):
    def __init__(self, config: PretrainedConfig) -> None:
        try:
            text_config = config.get_text_config()
            # The mixin's forward reads it, and not every configuration has it.
            text_config.pad_token_id = getattr(text_config, "pad_token_id", None)
            super().__init__(config)
        except (AttributeError, ValueError) as error:
            raise RewardModelError(
                f"Expected an architecture with one decoder and one width, but {config.model_type!r} is made of "
                f"several parts ({error}). Use the model type of its text part."
            ) from error


class _CachelessClassifier(_Classifier):
    """For backbones without the cache that the mixin's own forward passes on and reads (some recurrent ones)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast:
        """The logits at the last token of each row that is not padding, as in the mixin; no cache is kept."""
        model = cast(PreTrainedModel, self)
        masked = "attention_mask" in signature(model.base_model.forward).parameters
        output = model.base_model(input_ids, use_cache=False, **({"attention_mask": attention_mask} if masked else {}))
        logits = self.score(output.last_hidden_state)
        pad, rows = model.config.get_text_config().pad_token_id, torch.arange(len(input_ids), device=logits.device)
        if pad is None and len(rows) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        slots = torch.arange(input_ids.shape[1], device=logits.device)
        last = -1 if pad is None else (slots * (input_ids != pad).to(logits.device)).argmax(-1)
        return SequenceClassifierOutputWithPast(logits=logits[rows, last])


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of sequence classifiers of an architecture.

    Where transformers has one, it is that. Where not, it is built as transformers builds its own: the mixin
    `transformers.modeling_layers.GenericForSequenceClassification` on the architecture's own base. A checkpoint of a
    built class, `GraniteForSequenceClassification` say, does not load with `AutoModelForSequenceClassification`. It
    does with this library, or with the class

        class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
            base_model_prefix = GranitePreTrainedModel.base_model_prefix

    Args:
        config: Configuration of a model that transformers ships.

    Raises:
        CheckpointError: If the architecture is no causal language model.
    """
    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return cast(type[PreTrainedModel], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind])
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_MAPPING:
        raise CheckpointError(
            f"Expected an architecture that transformers has as a causal language model, but {config.model_type!r} is "
            "none, and no reward model can be built on it. Use a decoder-only architecture."
        )
    return _built(MODEL_MAPPING[kind])


@cache
def _built(backbone: type[PreTrainedModel]) -> type[PreTrainedModel]:
    base = next(cls for cls in backbone.__mro__ if cls.__name__.endswith("PreTrainedModel"))
    parameters = signature(backbone.forward).parameters
    # From transformers 5.24 on `past_key_values` is `cache`, which recurrent backbones take too; positions they do not.
    keeps_cache = "past_key_values" in parameters or {"cache", "position_ids"} <= parameters.keys()
    mixin: Any = _Classifier if keeps_cache else _CachelessClassifier
    name = base.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    members = {
        "__doc__": f"A linear head on the states of {backbone.__name__}.",
        "__module__": __name__,
        # The mixin says "model", but the weights of a language model lie under the architecture's own prefix.
        "base_model_prefix": cast(Any, base).base_model_prefix or "model",
    }
    return cast(type[PreTrainedModel], type(name, (mixin, base), members))
