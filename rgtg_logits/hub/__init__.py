"""Transport to and from the Hub: one commit or none, complete files or an error that says what to do."""

from rgtg_logits.hub.checkpoint import Checkpoint
from rgtg_logits.hub.download import download_checkpoint
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain
from rgtg_logits.hub.files import ADAPTER_CONFIG, CARD, CONFIG, RGTG_FILE, card_images, obsolete_files
from rgtg_logits.hub.upload import PushOptions, upload

__all__ = [
    "ADAPTER_CONFIG",
    "CARD",
    "CLIENT_ERRORS",
    "CONFIG",
    "RGTG_FILE",
    "Checkpoint",
    "PushOptions",
    "card_images",
    "download_checkpoint",
    "explain",
    "obsolete_files",
    "upload",
]
