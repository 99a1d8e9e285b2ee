"""Loads checkpoints of reward models: the model, its tokenizer, and the dict `rgtg` of its config."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rgtg_logits.errors import CheckpointError, RewardModelError, RGTGError
from rgtg_logits.hub import Checkpoint, download_checkpoint
from rgtg_logits.reward_model.classifiers import classifier_class
from rgtg_logits.reward_model.config import read_config
from rgtg_logits.reward_model.layouts import HeadLayout, check_unused, head_layout

HUB_ARGUMENTS = ("token", "cache_dir", "force_download", "local_files_only", "subfolder")
"""Arguments about where files are downloaded from and stored."""
HEADS = ("score", "classifier", "lm_head", "embed_out")
"""Names of the last layer of sequence classifiers and of language models in transformers."""


class LoadedCheckpoint(NamedTuple):
    """A model from a checkpoint.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        rgtg: `config.rgtg`, if the checkpoint has it.
        layout: How its head is stored.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    rgtg: dict[str, Any] | None
    layout: HeadLayout


def load_checkpoint(name: str, kind: str | None, options: dict[str, Any], hub: dict[str, Any]) -> LoadedCheckpoint:
    """Loads a model, or an adapter and its base model, from safetensors and without running code of the repository.

    Args:
        name: A Hub id or a folder.
        kind: How its rewards are read, if not as the checkpoint says.
        options: Arguments of `from_pretrained` about the weights, such as `dtype`.
        hub: Arguments about the Hub; see `HUB_ARGUMENTS`.

    Raises:
        CheckpointError: If it cannot be loaded, or is no reward model.
        InvalidArgumentError: If there is no such kind.
    """
    read_config(None, kind)
    _check_exists(name)
    try:
        folder = download_checkpoint(name, **hub)
        checkpoint = Checkpoint.read(folder, name, options.get("variant"))
        if checkpoint.is_adapter:
            return _load_adapter(checkpoint, kind, options, hub)
        return _load_whole(checkpoint, kind, options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, RGTGError):
            raise
        raise CheckpointError(
            f"Expected {name!r} to be a Hub id or a folder with config.json, safetensors weights and a tokenizer "
            f"of an architecture that transformers ships, but loading it failed: {error} "
            "Check the name, the access token and the revision; convert pickled weights with save_pretrained; "
            "code from a repository is never run."
        ) from error


def _load_whole(checkpoint: Checkpoint, kind: str | None, options: dict[str, Any]) -> LoadedCheckpoint:
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    kind = read_config(checkpoint.rgtg, kind).kind
    layout = None
    if kind == "causal":
        check_decoder(config, checkpoint.name)
        layout = head_layout(checkpoint)
        if layout is not None and layout.key_mapping:
            config.architectures = [classifier_class(config).__name__]
            options = {**options, "key_mapping": layout.key_mapping}
        if layout is not None and not {"num_labels", "id2label", "label2id"} & checkpoint.config.keys():
            config.num_labels = 1
    check_architecture(config, checkpoint.name, kind)
    model, missing, unused = _load_weights(checkpoint, config, kind, options)
    if missing:
        raise _untrained(checkpoint.name, type(model).__name__, missing)
    check_unused(checkpoint.name, type(model).__name__, unused)
    return LoadedCheckpoint(model, _load_tokenizer(checkpoint), checkpoint.rgtg, layout or HeadLayout())


def _load_weights(
    checkpoint: Checkpoint, config: Any, kind: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """The model, and the names of the weights that the checkpoint lacks, and of those that the model does not use."""
    checkpoint.check_weights()
    loader: Any = AutoModelForCausalLM
    if kind == "causal":
        built = type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        loader = classifier_class(config) if built else AutoModelForSequenceClassification
    if "quantization_config" in options:
        options = {**options, "quantization_config": _sparing_heads(options["quantization_config"])}
    model, info = loader.from_pretrained(
        checkpoint.folder,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    # Not the folder in the cache: an adapter that is trained on it, and a card, name it as the base model.
    model.name_or_path = model.config.name_or_path = checkpoint.name
    _warn_of_mixing(checkpoint.name, getattr(model.config, "quantization_config", None))
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    checkpoint.check_tokenizer()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    tokenizer.name_or_path = checkpoint.name
    return tokenizer


def _load_adapter(
    checkpoint: Checkpoint, kind: str | None, options: dict[str, Any], hub: dict[str, Any]
) -> LoadedCheckpoint:
    """Loads a PEFT adapter on its base model; what `config.rgtg` says of a whole checkpoint lies beside it."""
    name = checkpoint.name
    try:
        import peft  # noqa: PLC0415  (only adapters need it)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"Expected the package peft, because {name!r} is an adapter, but it is not installed. "
            "Run: pip install peft."
        ) from error
    # peft would go on to a pickled file.
    checkpoint.check_weights()
    adapter = peft.PeftConfig.from_pretrained(checkpoint.folder)
    kind = adapter_kind(name, adapter.task_type, checkpoint.rgtg, kind)
    base_name = adapter.base_model_name_or_path
    base_folder = download_checkpoint(base_name, **{**hub, "revision": adapter.revision, "subfolder": ""})
    base = Checkpoint.read(base_folder, base_name, options.get("variant"))
    config = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    if kind == "causal":
        config.num_labels = 1
    check_decoder(config, base.name)
    model, missing, _ = _load_weights(base, config, kind, options)
    has_tokenizer = "tokenizer_config.json" in checkpoint.files
    tokenizer = _load_tokenizer(checkpoint if has_tokenizer else base)
    missing |= _make_room(model, len(tokenizer))
    trained = {
        weight.removeprefix("base_model.model.").replace(".modules_to_save", "") for weight in checkpoint.weight_names
    }
    missing -= trained
    _untie(model, trained)
    if missing:
        raise _untrained(name, f"{type(model).__name__} that {base.name!r} does not", missing)
    # In the type of the base model, and not in float32 as for training.
    model = peft.PeftModel.from_pretrained(model, checkpoint.folder, autocast_adapter_dtype=False)
    return LoadedCheckpoint(model, tokenizer, checkpoint.rgtg, HeadLayout())


def adapter_kind(name: str, task: str | None, stored: dict[str, Any] | None, kind: str | None) -> str:
    """The kind of an adapted model.

    Raises:
        CheckpointError: If it does not fit the task type that the adapter was trained for.
    """
    kind = read_config(stored, kind).kind
    if kind == "causal" and task == "CAUSAL_LM":
        raise CheckpointError(
            f"Expected {name!r} to be an adapter of task type SEQ_CLS, which holds a scalar head, but it is one of a "
            "language model (CAUSAL_LM). If that model's next-token logits are rewards, pass kind='vocabulary' to "
            "RewardModel.from_pretrained, or kind='log_ratio' if it is a model of GenARM or DPO; if not, train the "
            "adapter with task_type='SEQ_CLS'."
        )
    if kind != "causal" and task == "SEQ_CLS":
        raise CheckpointError(
            f"Expected {name!r} to be an adapter of task type CAUSAL_LM, whose logits the kind {kind!r} reads, but "
            "it is of SEQ_CLS. Load it with kind='causal'."
        )
    return kind


def _make_room(model: PreTrainedModel, tokens: int) -> set[str]:
    """Resizes embeddings for a tokenizer that was extended for an adapter; returns the names of the random weights."""
    if tokens <= model.get_input_embeddings().weight.shape[0]:
        return set()
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    resized = [layer.weight for layer in layers if layer is not None]
    return {name for name, parameter in model.named_parameters() if any(parameter is weight for weight in resized)}


def _untie(model: PreTrainedModel, held: set[str]) -> None:
    """Sets `tie_word_embeddings=False` if the adapter holds an output layer of its own.

    Otherwise embeddings and output layer would be tied again when the adapter is merged and saved.
    """
    layer = model.get_output_embeddings()
    if any(module is layer and f"{name}.weight" in held for name, module in model.named_modules()):
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _sparing_heads(quantization_config: Any) -> Any:
    """Adds heads to the layers that are not quantised, because a reward is no better than its head.

    transformers does so by itself, unless the configuration lists layers.
    """
    is_dict = isinstance(quantization_config, dict)
    values = quantization_config if is_dict else vars(quantization_config)
    changes = {}
    for key in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if values.get(key):
            changes[key] = [*values[key], *HEADS]
    if is_dict:
        return {**values, **changes}
    changed_config = copy.copy(quantization_config)
    vars(changed_config).update(changes)
    return changed_config


def _warn_of_mixing(name: str, quantization_config: Any) -> None:
    """Warns of LLM.int8(), with which the tokens of a batch change each other's rewards."""
    values = quantization_config or {}
    values = values if isinstance(values, dict) else values.to_dict()
    if values.get("load_in_8bit") and values.get("llm_int8_threshold", 6.0) > 0:
        warnings.warn(
            f"{name!r} is quantised by LLM.int8(), which chooses what it computes in half precision by looking at all "
            "tokens of a forward, so a reward depends on the other rows of its batch. Pass "
            "BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0), or quantise to 4 bit.",
            stacklevel=6,
        )


def _untrained(name: str, model: str, missing: set[str]) -> CheckpointError:
    return CheckpointError(
        f"Expected {name!r} to hold every weight of {model}, but it lacks {', '.join(sorted(missing))}. Such weights "
        "would be random: train the model first (rgtg train), or name a checkpoint with a trained head."
    )


def _check_exists(name: str) -> None:
    """Refuses mistyped folders, which cannot be Hub ids, before the network is used."""
    if not Path(name).exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise CheckpointError(
            f"Expected a Hub id such as 'org/name' or an existing folder, but {name!r} is neither. Check the path."
        )


def check_architecture(config: Any, name: str, kind: str) -> None:
    """Refuses configurations of models from which rewards of the kind cannot be read."""
    architectures = config.architectures or []
    is_classifier = any("ForSequenceClassification" in item for item in architectures)
    is_language_model = any(item.endswith(("ForCausalLM", "LMHeadModel")) for item in architectures)
    if kind == "causal" and architectures and not is_classifier and not is_language_model:
        raise CheckpointError(
            f"Expected {name!r} to be a …ForSequenceClassification checkpoint, or one linear head of one output beside "
            f"a causal backbone, but it is {', '.join(architectures)} with another head, whose code is never run here. "
            "Load it with its own code, and pass a function of texts to WeightedScorer, or to `rgtg pairs --reward`."
        )
    if kind == "causal" and architectures and not is_classifier:
        raise CheckpointError(
            f"Expected {name!r} to be a …ForSequenceClassification checkpoint, but it is {', '.join(architectures)}, "
            "which has no reward head. Train one from it with `rgtg train`; or, if its next-token logits are rewards, "
            "pass kind='vocabulary' to RewardModel.from_pretrained, or kind='log_ratio' if it is a model of GenARM or "
            "DPO."
        )
    if kind != "causal" and is_classifier:
        raise CheckpointError(
            f"Expected {name!r} to be a …ForCausalLM checkpoint, whose logits the kind {kind!r} reads, but it is "
            f"{', '.join(architectures)}, which has none. Load it with kind='causal'."
        )
    check_decoder(config, name)
    if kind == "causal":
        check_labels(config, name)


def check_decoder(config: Any, name: str) -> None:
    """Refuses configurations of encoder-decoders, whose states are not those of prefixes."""
    if config.is_encoder_decoder:
        raise RewardModelError(
            f"Expected a decoder-only reward model, but {name} is an encoder-decoder, whose states change when text is "
            "added. Use a causal architecture."
        )


def check_labels(config: Any, name: str) -> None:
    """Refuses configurations of classifiers with more than one output."""
    if config.num_labels != 1:
        raise RewardModelError(
            f"Expected a reward model with num_labels=1 (one scalar per text), but {name} has "
            f"num_labels={config.num_labels}: it is a classifier, and none of its outputs is known to be a reward. "
            "Use a reward model, or train one with `rgtg train`."
        )
