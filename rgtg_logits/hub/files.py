"""Which files of a folder are a checkpoint, and whether its weights are whole; no weight is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rgtg_logits.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILE = "rgtg.json"
"""Holds, beside an adapter, what `config.rgtg` holds in a whole checkpoint."""
CARD = "README.md"

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What tokenizers of transformers are made of."""
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index*.json",
    "pytorch_model*.safetensors", ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_FILE,
)  # fmt: skip
PICKLES = ("pytorch_model*.bin", "pytorch_model*.bin.index.json", "adapter_model.bin")
"""Weights as transformers and PEFT used to save them."""
PICKLES_ARE_REFUSED = (
    "Pickles can run code when they are read, so they are not uploaded, and pickled weights are never loaded. Save it "
    "again with a current transformers or peft, where you trust it."
)

_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_NAMED = re.compile(r"""!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img\b[^>]*?\bsrc=["']([^"']+)["']""", re.IGNORECASE)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's name relative to its repository fits one of the patterns, whose `*` stays in its folder."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), name) for pattern in patterns)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_tokenizer(folder: Path, name: str) -> None:
    """Checks that a folder holds a tokenizer.

    Raises:
        CheckpointError: If it does not.
    """
    if not any(matches(file.name, TOKENIZER_FILES) for file in folder.iterdir()):
        raise CheckpointError(
            f"Expected {name!r} to hold a tokenizer, without which it cannot read text, but it does not. Save the "
            "tokenizer there too (RewardModel(model, tokenizer))."
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        CheckpointError: If the file does not exist, or holds anything else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected {str(file)!r} to be JSON, but it cannot be read: {error}. Save the checkpoint again."
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"Expected {str(file)!r} to be a JSON object, but it holds a {type(values).__name__}. Save the checkpoint "
            "again."
        )
    return values


def weight_names(folder: Path, name: str, variant: str | None = None) -> dict[str, set[str]]:
    """The names of the weights in each file that transformers or PEFT would load, from the files' headers.

    Args:
        folder: Where the checkpoint is.
        name: What to call it in errors.
        variant: As in transformers: "fp16" for `model.fp16.safetensors`.

    Raises:
        CheckpointError: If there are no weights in safetensors, a file that the index lists is missing or lacks a
            weight, or a file is cut off, or its header does not fit it.
    """
    if is_adapter(folder):
        return _headers(folder, name, [ADAPTER_WEIGHTS])
    infix = f".{variant}" if variant else ""
    whole, index = f"model{infix}.safetensors", f"model.safetensors.index{infix}.json"
    if (folder / whole).is_file() or not (folder / index).is_file():
        return _headers(folder, name, [whole])
    listed = read_json(folder / index).get("weight_map", {})
    held = _headers(folder, name, sorted(set(listed.values())))
    missing = sorted(weight for weight, file in listed.items() if weight not in held[file])
    if missing or not listed:
        raise CheckpointError(
            f"Expected the files of {name!r} to hold every weight that {index} lists, but they lack "
            f"{', '.join(missing[:5]) or 'all'}. They are of different checkpoints: save or upload it again."
        )
    return held


def _headers(folder: Path, name: str, files: list[str]) -> dict[str, set[str]]:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        pickles = sorted(path.name for path in folder.glob("*") if matches(path.name, PICKLES))
        found = (
            f" and has pickled weights ({', '.join(pickles)}). {PICKLES_ARE_REFUSED}" if pickles else ". Save it again."
        )
        raise CheckpointError(
            f"Expected {name!r} to hold its weights in safetensors, but it lacks {', '.join(missing)}{found}"
        )
    return {file: _header(folder / file, name) for file in files}


def _header(file: Path, name: str) -> set[str]:
    try:
        with safe_open(file, "pt") as held:
            return set(held.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Expected {file.name} of {name!r} to be a whole safetensors file, but it is cut off or damaged: {error}. "
            "Save or download it again (force_download=True)."
        ) from error


def checkpoint_files(folder: Path) -> list[str]:
    """The files that are uploaded from a folder, by name, and no others.

    They are the configuration, the weights in safetensors, the tokenizer, the card, and the pictures that it names.
    Beside an adapter there is no `config.json`, because transformers (5.23) takes that for a whole model.

    Raises:
        CheckpointError: As `weight_names` does, and if the folder holds both an adapter and a whole model.
    """
    weights = sorted(weight_names(folder, str(folder)))
    if is_adapter(folder):
        whole = sorted(path.name for path in folder.glob("model*.safetensors*"))
        if whole:
            raise CheckpointError(
                f"Expected {str(folder)!r} to hold one reward model, but it holds an adapter and a whole model "
                f"({', '.join(whole)}). Delete the one that is out of date: either {ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} "
                f"and {ADAPTER_FILE}, or the others."
            )
        names = [ADAPTER_CONFIG, ADAPTER_FILE, *weights]
    else:
        index = [] if weights == ["model.safetensors"] else ["model.safetensors.index.json"]
        names = ["config.json", "generation_config.json", *index, *weights]
    present = {path.relative_to(folder).as_posix() for pattern in ("*", "*/*.jinja") for path in folder.glob(pattern)}
    names += sorted(name for name in present if matches(name, TOKENIZER_FILES))
    names += [CARD, *pictures(folder / CARD)]
    return [name for name in names if (folder / name).is_file()]


def pictures(card: Path) -> list[str]:
    """The pictures that a card shows by a path relative to its own folder, whether they exist or not."""
    if not card.is_file():
        return []
    named = {first or second for first, second in _NAMED.findall(card.read_text(encoding="utf-8"))}
    inside = {Path(name.removeprefix("./")) for name in named if "://" not in name}
    return sorted(
        path.as_posix()
        for path in inside
        if path.suffix.lower() in _IMAGES and not path.is_absolute() and ".." not in path.parts
    )


def stale_files(there: list[str], new: list[str], others: tuple[str, ...] = ()) -> list[str]:
    """Files of an older checkpoint that a new one in their place does not have, so that there is never a mixture.

    They are weights, pickled ones too, and configurations; and those of the tokenizer if the new checkpoint brings one.
    All else, such as the card, folders of other things, or data, stays.

    Args:
        there: Names of all files in the place.
        new: Names of those of the new checkpoint.
        others: Patterns of further files that have to go.
    """
    owned = (*MODEL_FILES, *PICKLES, *others)
    if any(matches(name, TOKENIZER_FILES) for name in new):
        owned += TOKENIZER_FILES
    return sorted(name for name in there if name not in new and matches(name, owned))
