"""Loading of the base model and its tokenizer, and the choice of device and dtype, for every command."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.errors import CheckpointError, InvalidArgumentError


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Device and dtype of a command, with the defaults filled in.

    Args:
        device: The device given by the user; by default a GPU if there is one.
        dtype: The dtype given by the user; by default float32 on a CPU, where half precision is slow, and "auto", that
            of the checkpoint, elsewhere.

    Raises:
        InvalidArgumentError: If this machine has no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(
            f"Expected a device of this machine, such as cpu, cuda or cuda:1, but got {device!r}: {error} "
            "Leave --device out for the default."
        ) from error
    return device, dtype or ("float32" if device.startswith("cpu") else "auto")


def load_base_model(name: str, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a base model, in evaluation mode, and its tokenizer.

    Args:
        name: Hub id or folder.
        device: Device of the model.
        dtype: Type of its weights, or "auto".

    Raises:
        CheckpointError: If the model cannot be loaded, or is not in safetensors.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"Expected {name!r} to be a Hub id or a folder with a causal language model in safetensors and its "
            f"tokenizer, but loading it failed: {error} Check the name of the base model."
        ) from error
    return model.to(device).eval(), tokenizer
