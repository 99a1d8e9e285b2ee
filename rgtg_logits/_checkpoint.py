"""From a Hub id or a folder to a model, its tokenizer and what the checkpoint says of itself."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file

from rgtg_logits._config import read_config
from rgtg_logits.errors import CheckpointError, RewardModelError, RGTGError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILE = "rgtg.json"
"""Holds, beside an adapter, what `config.rgtg` holds in a whole checkpoint."""


def load_checkpoint(
    name: str, kind: str | None, options: dict[str, Any], hub: dict[str, Any]
) -> tuple[nn.Module, PreTrainedTokenizerBase, dict[str, Any] | None]:
    """Loads a model of the kind, or an adapter on one, from safetensors and without running its code.

    Args:
        name: A Hub id or a folder.
        kind: How its rewards are read, if not as the checkpoint says.
        options: How to load the weights, for `from_pretrained`.
        hub: Where to find them, for every `from_pretrained`.

    Returns:
        The model, its tokenizer, and `config.rgtg` if the checkpoint has it.

    Raises:
        CheckpointError: If it cannot be loaded, or is no reward model.
        InvalidArgumentError: If there is no such kind.
    """
    read_config(None, kind)
    _check_exists(name)
    try:
        adapter = find_adapter_config_file(name, **_without(hub, "trust_remote_code")) is not None
        model, stored = (_load_adapter if adapter else _load_whole)(name, kind, options, hub)
        return model, AutoTokenizer.from_pretrained(name, **hub), stored
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, RGTGError):
            raise
        raise CheckpointError(
            f"Expected {name!r} to be a Hub id or a folder with config.json, safetensors weights and a tokenizer "
            f"of an architecture that transformers ships, but loading it failed: {error} "
            "Check the name, the access token and the revision; convert pickled weights with save_pretrained; "
            "code from a repository is never run."
        ) from error


def _load_whole(
    name: str, kind: str | None, options: dict[str, Any], hub: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any] | None]:
    config = AutoConfig.from_pretrained(name, **hub)
    stored = getattr(config, "rgtg", None)
    kind = read_config(stored, kind).kind
    _check_architecture(config, name, kind)
    loader = AutoModelForSequenceClassification if kind == "causal" else AutoModelForCausalLM
    model, info = loader.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options, **hub)
    if info["missing_keys"]:
        raise CheckpointError(
            f"Expected {name!r} to hold every weight of {type(model).__name__}, but it lacks "
            f"{', '.join(sorted(info['missing_keys']))}. Such weights would be random: train the model first "
            "(rgtg train), or name a checkpoint with a trained head."
        )
    return model, stored


def _load_adapter(
    name: str, kind: str | None, options: dict[str, Any], hub: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Loads a PEFT adapter on its base model; what `config.rgtg` says of a whole checkpoint lies beside it."""
    try:
        import peft  # noqa: PLC0415  (only adapters need it)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"Expected the package peft, because {name!r} is an adapter, but it is not installed. "
            "Run: pip install peft."
        ) from error
    files = partial(
        cached_file, name, _raise_exceptions_for_missing_entries=False, **_without(hub, "trust_remote_code")
    )
    # peft would go on to a pickled file.
    if files(ADAPTER_WEIGHTS) is None:
        raise CheckpointError(
            f"Expected the adapter {name!r} to hold its weights in {ADAPTER_WEIGHTS}, but it does not, and pickled "
            "weights are never loaded. Save it again with a current peft."
        )
    file = files(ADAPTER_FILE)
    stored = None if file is None else json.loads(Path(file).read_text())
    if read_config(stored, kind).kind == "causal":
        loader, options = peft.AutoPeftModelForSequenceClassification, {"num_labels": 1, **options}
    else:
        loader = peft.AutoPeftModelForCausalLM
    return loader.from_pretrained(name, use_safetensors=True, **options, **hub), stored


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _check_exists(name: str) -> None:
    """Tells a mistyped folder from a Hub id before anything is asked of the network."""
    if not Path(name).exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise CheckpointError(
            f"Expected a Hub id such as 'org/name' or an existing folder, but {name!r} is neither. Check the path."
        )


def _check_architecture(config: Any, name: str, kind: str) -> None:
    architectures = config.architectures or []
    is_classifier = any("ForSequenceClassification" in item for item in architectures)
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
    """Refuses configurations of models whose states are not those of prefixes."""
    if config.is_encoder_decoder:
        raise RewardModelError(
            f"Expected a decoder-only reward model, but {name} is an encoder-decoder, whose states change when text is "
            "added. Use a causal architecture."
        )


def check_labels(config: Any, name: str) -> None:
    """Refuses configurations of classifiers that have no single reward."""
    if config.num_labels != 1:
        raise RewardModelError(
            f"Expected a reward model with num_labels=1 (one scalar per text), but {name} has "
            f"num_labels={config.num_labels}: it is a classifier, and none of its outputs is known to be a reward. "
            "Use a reward model, or train one with `rgtg train`."
        )
