"""Names of the files that a checkpoint consists of, images of its card, and files of an older checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RGTG_FILE = "rgtg.json"
"""The file beside an adapter with the contents that `config.rgtg` has in a whole checkpoint."""
CARD = "README.md"

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Patterns of the files that tokenizers of transformers consist of."""
MODEL_FILES = (
    CONFIG, "generation_config.json", "model*.safetensors", "model*.safetensors.index*.json",
    "pytorch_model*.safetensors", ADAPTER_CONFIG, ADAPTER_WEIGHTS, RGTG_FILE,
)  # fmt: skip
PICKLES = ("pytorch_model*.bin", "pytorch_model*.bin.index.json", "adapter_model.bin")
"""Patterns of weights as older versions of transformers and PEFT saved them."""
PICKLES_ARE_REFUSED = (
    "Pickles can run code when they are read, so they are not uploaded, and pickled weights are never loaded. Save it "
    "again with a current transformers or peft, where you trust it."
)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_IMAGE = re.compile(r"""!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img\b[^>]*?\bsrc=["']([^"']+)["']""", re.IGNORECASE)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path relative to the repository matches one of the patterns.

    Unlike in `fnmatch`, and so in the patterns of huggingface_hub, `*` does not match a slash: `model*.safetensors`
    must not select the weights of another model in a subfolder.
    """
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), name) for pattern in patterns)


def card_images(card: Path) -> list[str]:
    """The images that a card shows by a path relative to its own folder, whether they exist or not."""
    if not card.is_file():
        return []
    images = set()
    for markdown, html in _IMAGE.findall(card.read_text(encoding="utf-8")):
        address = markdown or html
        path = Path(address.removeprefix("./"))
        is_outside = "://" in address or path.is_absolute() or ".." in path.parts
        if path.suffix.lower() in _IMAGE_SUFFIXES and not is_outside:
            images.add(path.as_posix())
    return sorted(images)


def obsolete_files(existing: list[str], new: list[str], extra_patterns: tuple[str, ...] = ()) -> list[str]:
    """The files of an older checkpoint that have to be deleted, so that its files never mix with those of a new one.

    They are weights (pickled ones too) and configurations that the new checkpoint does not have; and files of the
    tokenizer if the new checkpoint brings one. Everything else stays: the card, subfolders, data.

    Args:
        existing: Names of all files in the folder or repository.
        new: Names of the files of the new checkpoint.
        extra_patterns: Patterns of further files to delete.
    """
    patterns = (*MODEL_FILES, *PICKLES, *extra_patterns)
    if any(matches(name, TOKENIZER_FILES) for name in new):
        patterns += TOKENIZER_FILES
    return sorted(name for name in existing if name not in new and matches(name, patterns))
