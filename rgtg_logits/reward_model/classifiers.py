"""Sequence classifiers for every causal architecture, including those for which transformers ships none."""

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
            # The mixin's forward needs this attribute, and not every configuration has it.
            text_config.pad_token_id = getattr(text_config, "pad_token_id", None)
            super().__init__(config)
        except (AttributeError, ValueError) as error:
            raise RewardModelError(
                f"Expected an architecture with one decoder and one width, but {config.model_type!r} is made of "
                f"several parts ({error}). Use the model type of its text part."
            ) from error


class _CachelessClassifier(_Classifier):
    """A classifier on a backbone that has no cache as the mixin's own forward expects it (some recurrent ones)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast:
        """The logits at the last token of each row that is not padding, as in the mixin; no cache is returned."""
        model = cast(PreTrainedModel, self)
        takes_mask = "attention_mask" in signature(model.base_model.forward).parameters
        arguments = {"attention_mask": attention_mask} if takes_mask else {}
        output = model.base_model(input_ids, use_cache=False, **arguments)
        logits = self.score(output.last_hidden_state)
        pad_token_id = model.config.get_text_config().pad_token_id
        if pad_token_id is None:
            if len(input_ids) > 1:
                raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
            return SequenceClassifierOutputWithPast(logits=logits[:, -1])
        rows = torch.arange(len(input_ids), device=logits.device)
        columns = torch.arange(input_ids.shape[1], device=logits.device)
        last = (columns * (input_ids != pad_token_id).to(logits.device)).argmax(-1)
        return SequenceClassifierOutputWithPast(logits=logits[rows, last])


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of sequence classifiers of an architecture.

    It is the class of transformers, if there is one. If not, it is built as transformers builds its own: the mixin
    `transformers.modeling_layers.GenericForSequenceClassification` on the architecture's own base. A checkpoint of a
    built class, such as `GraniteForSequenceClassification`, does not load with `AutoModelForSequenceClassification`. It
    loads with this library, or with the class

        class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
            base_model_prefix = GranitePreTrainedModel.base_model_prefix

    Args:
        config: Configuration of a model that transformers ships.

    Raises:
        CheckpointError: If the architecture is no causal language model.
    """
    config_class = type(config)
    if config_class in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return cast(type[PreTrainedModel], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config_class])
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING or config_class not in MODEL_MAPPING:
        raise CheckpointError(
            f"Expected an architecture that transformers has as a causal language model, but {config.model_type!r} is "
            "none, and no reward model can be built on it. Use a decoder-only architecture."
        )
    return _build_class(MODEL_MAPPING[config_class])


@cache
def _build_class(backbone: type[PreTrainedModel]) -> type[PreTrainedModel]:
    base = next(cls for cls in backbone.__mro__ if cls.__name__.endswith("PreTrainedModel"))
    parameters = signature(backbone.forward).parameters
    # Since transformers 5.24, `past_key_values` is `cache`, which recurrent backbones take too; but they take no
    # positions.
    has_kv_cache = "past_key_values" in parameters or {"cache", "position_ids"} <= parameters.keys()
    mixin: Any = _Classifier if has_kv_cache else _CachelessClassifier
    name = base.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    members = {
        "__doc__": f"A linear head on the states of {backbone.__name__}.",
        "__module__": __name__,
        # The mixin says "model", but a language model's weights are named by the architecture's own prefix.
        "base_model_prefix": cast(Any, base).base_model_prefix or "model",
    }
    return cast(type[PreTrainedModel], type(name, (mixin, base), members))
