"""Transport to and from the Hub: one commit or none, whole files or an error that says what to do."""

from rgtg_logits.hub.download import fetch
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain
from rgtg_logits.hub.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CARD,
    check_tokenizer,
    checkpoint_files,
    is_adapter,
    pictures,
    read_json,
    stale_files,
    weight_names,
)
from rgtg_logits.hub.upload import PushOptions, upload

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_FILE",
    "ADAPTER_WEIGHTS",
    "CARD",
    "CLIENT_ERRORS",
    "PushOptions",
    "check_tokenizer",
    "checkpoint_files",
    "explain",
    "fetch",
    "is_adapter",
    "pictures",
    "read_json",
    "stale_files",
    "upload",
    "weight_names",
]
