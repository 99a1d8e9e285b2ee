"""Models to train: loaded as the kind of reward model needs them, checked, and adapted."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import create_model_from_path

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.reward_model import HUB_ARGUMENTS, check_labels, classifier_class, unwrap_adapter
from rgtg_logits.train.config import PartialRewardConfig

logger = logging.getLogger(__name__)

HALF_WEIGHTS = (
    "Expected weights in float32 or bfloat16 to train, but got float16, in which updates vanish or overflow to NaN. "
    "Pass --dtype float32 with --fp16 or --bf16, which compute in half precision (mixed precision)."
)
"""The message about weights in float16."""
_INITIAL_SCALE = 0.1
"""Factor of `scale_initial_logits`."""


def load_model(name: str, args: PartialRewardConfig, quantization_config: Any = None) -> PreTrainedModel:
    """Loads the model to train: a sequence classifier for the kind "causal", a language model for the others.

    TRL loads sequence classifiers itself, but only of architectures for which transformers has one.

    Args:
        name: A Hub id or a folder.
        args: The training arguments, of which `model_init_kwargs` go to `from_pretrained`.
        quantization_config: How to quantise the weights.

    Raises:
        InvalidArgumentError: If code from the repository would be run, or there are two quantisation configs.
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
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_hub_options(options))
    try:
        with suppress_seqcls_warning():
            return create_model_from_path(name, classifier_class(config), num_labels=1, **options)
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise InvalidArgumentError(
            f"Expected {name!r} to be a language model, or a reward model with one label, but its head is of another "
            f"shape ({config.num_labels} labels in its config). Train the language model that it was made from."
        ) from error


def load_tokenizer(name: str, args: PartialRewardConfig) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of the same repository and revision as the model."""
    options = _hub_options(args.model_init_kwargs or {})
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def check_model(model: nn.Module, kind: str, objective: str, *, is_adapted: bool = False) -> None:
    """Checks that a loaded model is of the class that a kind of reward model needs, and can be trained.

    Args:
        model: The model.
        kind: How rewards are read.
        objective: The objective, for messages.
        is_adapted: Whether an adapter is trained instead of its weights.

    Raises:
        InvalidArgumentError: If it is of another class, or its weights are in float16.
        RewardModelError: If it is a classifier with more than one label.
    """
    inner: Any = unwrap_adapter(model)
    name = type(inner).__name__
    if any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()) and not is_adapted:
        raise InvalidArgumentError(HALF_WEIGHTS)
    if kind == "causal":
        if _is_language_model(inner):
            raise InvalidArgumentError(
                f"Expected a …ForSequenceClassification model, because the objective {objective!r} trains a reward "
                f"model of kind 'causal', but got {name}. Load it with "
                "AutoModelForSequenceClassification.from_pretrained(…, num_labels=1), or pass its name. To train its "
                "logits as rewards, set kind='vocabulary'."
            )
        check_labels(inner.config, name)
    elif not _is_language_model(inner):
        raise InvalidArgumentError(
            f"Expected a …ForCausalLM model, because the objective {objective!r} trains a reward model of kind "
            f"{kind!r}, but got {name}. Load it with AutoModelForCausalLM.from_pretrained(…), or pass its name."
        )


def scale_initial_logits(model: nn.Module) -> bool:
    """Scales the logits of a language model, which are to become rewards, to a tenth of what they are.

    Its output layer gets weights of its own if they were tied to the embeddings. A model whose `config.rgtg` says that
    its logits are rewards already is left as it is, and so is one in a PEFT wrapper, whose adapter would not save the
    layer.

    Logits of a language model are large numbers: as rewards they begin with a large error and, in bfloat16, with coarse
    steps. Measured with "value" on 1,500 film reviews truncated at 64 tokens and a model of 6.6M parameters, one epoch
    at a constant learning rate of 3e-4, as half the squared error of held-out prefixes (1.51 for predicting 0): 1.51
    from unscaled logits, 1.32 from a tenth of them, 1.31 from zero; LoRA 1.67, 1.41, 1.41; a scalar head 1.27. Zero is
    worse for tokens that are rare in training, because it forgets which tokens are alike: for those seen at most once
    1.93, 1.32 and 1.45.

    Returns:
        Whether the logits were scaled.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    if (getattr(model.config, "rgtg", None) or {}).get("kind") == "vocabulary":
        return False
    layer: Any = model.get_output_embeddings()
    # A quantised layer cannot be scaled, and one that DeepSpeed has partitioned (ZeRO-3) is empty here.
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or not layer.weight.numel():
        logger.warning(
            "The first rewards are the unscaled logits of the language model, because its output layer is a %s that "
            "cannot be scaled. Expect a large loss at first.", type(layer).__name__,
        )  # fmt: skip
        return False
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
    layer.weight = nn.Parameter(layer.weight.detach() * _INITIAL_SCALE)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach() * _INITIAL_SCALE)
    return True


def adapter_config(config: PeftConfig | None, kind: str, output_layer: str | None = None) -> PeftConfig | None:
    """A copy of an adapter's configuration with the task type that a kind of reward model needs.

    With SEQ_CLS, PEFT trains and saves the scalar head along with the adapter.

    Args:
        config: The user's configuration; None without an adapter.
        kind: How rewards are read.
        output_layer: Name of a layer that differs from the base model's, and has to be saved with the adapter.
    """
    if config is None:
        return None
    task_type = "SEQ_CLS" if kind == "causal" else "CAUSAL_LM"
    given = str(getattr(config.task_type, "value", config.task_type))
    if given not in (task_type, "None"):
        logger.info("The adapter's task type %s becomes %s, which the kind %r needs.", given, task_type, kind)
    config = copy.copy(config)
    config.task_type = task_type
    # TRL (1.16) takes a single name out of its list, and PEFT reads a text as a pattern of whole paths.
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.isidentifier():
        config.target_modules = {targets}
    if output_layer is not None:
        # Prompt learning has no such list; it is refused later.
        saved = getattr(config, "modules_to_save", None) or []
        config.modules_to_save = list(dict.fromkeys([*saved, output_layer]))
    return config


def output_layer_name(model: PreTrainedModel) -> str:
    """The name of a language model's output layer among its modules."""
    layer = model.get_output_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is layer]
    return name


@contextmanager
def adapter_errors(model: nn.Module, config: PeftConfig | None) -> Iterator[None]:
    """Turns PEFT's error about target modules that a model does not have into a sentence that names those it has."""
    try:
        yield
    except ValueError as error:
        if config is None or "target" not in str(error) or "modules" not in str(error):
            raise
        layers = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        names = sorted({path.rpartition(".")[2] for path in layers})
        given = getattr(config, "target_modules", None)
        raise InvalidArgumentError(
            f"Expected the adapter's target modules to be layers of the model ({', '.join(names)}), but got {given}. "
            "Name some of these with --lora_target_modules, or all-linear for all."
        ) from error


@contextmanager
def trl_checks_disabled(model: nn.Module, args: PartialRewardConfig, *, loaded_here: bool) -> Iterator[None]:
    """Lets TRL (1.16) accept a model that it did not load itself.

    It refuses models without num_labels=1, even language models, which have no labels at all; and it would warn that
    `model_init_kwargs` are ignored, which is wrong if they were used to load the model before.
    """
    inner: Any = unwrap_adapter(model)
    config = inner.config
    options = args.model_init_kwargs
    id2label = config.id2label
    label2id = config.label2id
    config.num_labels = 1
    args.model_init_kwargs = None if loaded_here else options
    try:
        yield
    finally:
        args.model_init_kwargs = options
        config.id2label = id2label
        config.label2id = label2id


def _is_language_model(model: nn.Module) -> bool:
    if not isinstance(model, PreTrainedModel):
        return False
    return model.can_generate() and model.get_output_embeddings() is not None


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say where the files are, without those about the weights."""
    return {key: options[key] for key in (*HUB_ARGUMENTS, "revision") if key in options}
