"""The models that are trained: loaded as the kind needs them, checked, and adapted."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import create_model_from_path

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import HUB_ARGUMENTS, check_labels, classifier_class
from rgtg_logits.train.config import PartialRewardConfig

logger = logging.getLogger(__name__)

_FIRST_SCALE = 0.1


def load_model(name: str, args: PartialRewardConfig, quantization_config: Any = None) -> PreTrainedModel:
    """Loads what is to be trained: a sequence classifier for the kind "causal", a language model for the others.

    TRL loads the first itself, but none of an architecture for which transformers has no sequence classifier.

    Args:
        name: A Hub id or a folder.
        args: The training arguments, of which `model_init_kwargs` go to `from_pretrained`.
        quantization_config: How to quantise the weights.

    Raises:
        InvalidArgumentError: If code from the repository is to be run, or quantisation is told twice.
        CheckpointError: If the architecture is no causal language model.
    """
    options = dict(args.model_init_kwargs or {})
    # TRL 1.0 has no such argument.
    if options.pop("trust_remote_code", False) or getattr(args, "trust_remote_code", False):
        raise InvalidArgumentError(
            f"Expected to load {name!r} without code of its own, but got trust_remote_code=True. Load the model "
            "yourself and pass it to the trainer."
        )
    if quantization_config is not None:
        if "quantization_config" in options:
            raise InvalidArgumentError(
                "Expected one quantization_config, but got one in model_init_kwargs and another beside it. "
                "Leave one of them out."
            )
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # Each process holds the whole model on its own device.
    if args.kind != "causal":
        return create_model_from_path(name, AutoModelForCausalLM, **options)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_where(options))
    with suppress_seqcls_warning():
        return create_model_from_path(name, classifier_class(config), num_labels=1, **options)


def load_tokenizer(name: str, args: PartialRewardConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the same repository and revision."""
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **_where(args.model_init_kwargs or {}))


def check_model(model: nn.Module, kind: str, objective: str) -> None:
    """Refuses a loaded model of another class than the kind needs.

    Raises:
        InvalidArgumentError: If it is one.
        RewardModelError: If it is a classifier with more than one label.
    """
    inner = inner_model(model)
    writes = isinstance(inner, PreTrainedModel) and inner.can_generate() and inner.get_output_embeddings() is not None
    if writes == (kind != "causal"):
        if kind == "causal":
            check_labels(inner.config, type(inner).__name__)
        return
    if kind == "causal":
        wanted, loader, other = "…ForSequenceClassification", "AutoModelForSequenceClassification", ""
        options, other = ", num_labels=1", " To train its logits as rewards, set kind='vocabulary'."
    else:
        wanted, loader, options, other = "…ForCausalLM", "AutoModelForCausalLM", "", ""
    raise InvalidArgumentError(
        f"Expected a {wanted} model, because the objective {objective!r} trains a reward model of kind {kind!r}, but "
        f"got {type(inner).__name__}. Load it with {loader}.from_pretrained(…{options}), or pass its name.{other}"
    )


def scale_initial_logits(model: nn.Module) -> bool:
    """Makes the logits of a language model, which are to become rewards, a tenth of what they are.

    Its output layer becomes one of its own, where it was tied to the embeddings. That is done once: a model whose
    `config.rgtg` says that its logits are rewards already is left as it is, and so is one in a PEFT wrapper, whose
    adapter would not hold the layer.

    Logits of a language model are large numbers, by which rewards would be wrong at first and, in bfloat16, coarse.
    Measured with "value" on 1,500 film reviews cut at 64 tokens and a model of 6.6M parameters, one epoch at a constant
    learning rate of 3e-4, as half the squared error of held-out prefixes (1.51 for saying 0): 1.51 from the logits as
    they are, 1.32 from a tenth of them, 1.31 from zero; LoRA 1.67, 1.41, 1.41; a scalar head 1.27. Zero is worse for
    tokens that are rare in training, because it forgets which tokens are alike: for those seen at most once 1.93, 1.32
    and 1.45.

    Returns:
        Whether it was done.
    """
    if (
        not isinstance(model, PreTrainedModel)
        or (getattr(model.config, "rgtg", None) or {}).get("kind") == "vocabulary"
    ):
        return False
    layer: Any = model.get_output_embeddings()
    # A quantised layer cannot be scaled, and one that DeepSpeed has split between processes (ZeRO-3) is empty here.
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or not layer.weight.numel():
        logger.warning(
            "The logits of the language model are taken as first rewards as they are, because its output layer is a %s "
            "that cannot be scaled. Expect a large loss at first.", type(layer).__name__,
        )  # fmt: skip
        return False
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    layer.weight = nn.Parameter(layer.weight.detach() * _FIRST_SCALE)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach() * _FIRST_SCALE)
    return True


def adapter_config(config: PeftConfig | None, kind: str, output_layer: str | None = None) -> PeftConfig | None:
    """The adapter's configuration with the task type that the kind needs; the user's own object stays as it is.

    With SEQ_CLS, PEFT trains and saves the head too.

    Args:
        config: The user's.
        kind: How rewards are read.
        output_layer: Name of a layer that differs from the base model's, and has to be saved with the adapter.
    """
    wanted = "SEQ_CLS" if kind == "causal" else "CAUSAL_LM"
    if config is None:
        return None
    given = str(getattr(config.task_type, "value", config.task_type))
    if given not in (wanted, "None"):
        logger.info("The adapter's task type %s becomes %s, which the kind %r needs.", given, wanted, kind)
    config = copy.copy(config)
    config.task_type = wanted
    if output_layer is not None:
        # What a prompt learns is no layer, and has no such list; it is refused later.
        saved = getattr(config, "modules_to_save", None) or []
        config.modules_to_save = list(dict.fromkeys([*saved, output_layer]))
    return config


def output_layer_name(model: PreTrainedModel) -> str:
    """The name of a language model's last layer."""
    layer = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is layer)


def inner_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def taken_as_loaded(model: nn.Module, args: PartialRewardConfig, *, here: bool) -> Iterator[None]:
    """Lets TRL (1.16) take a model that it did not load itself.

    It refuses models without num_labels=1, language models too, which have no labels at all; and where the model was
    loaded `here`, it would warn that `model_init_kwargs` are ignored, which they were not.
    """
    config, options = inner_model(model).config, args.model_init_kwargs
    labels = config.id2label, config.label2id
    config.num_labels = 1
    args.model_init_kwargs = None if here else options
    try:
        yield
    finally:
        args.model_init_kwargs = options
        config.id2label, config.label2id = labels


def _where(options: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments for loading a model, those that say where its files are."""
    return {key: options[key] for key in (*HUB_ARGUMENTS, "revision") if key in options}
