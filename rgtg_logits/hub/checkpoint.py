"""A checkpoint in a folder, described by its configuration and the headers of its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rgtg_logits.errors import CheckpointError
from rgtg_logits.hub.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    CONFIG,
    INDEX,
    PICKLES,
    PICKLES_ARE_REFUSED,
    RGTG_FILE,
    TOKENIZER_FILES,
    WEIGHTS,
    card_images,
    matches,
)


@dataclass(frozen=True)
class Checkpoint:
    """A whole model or a PEFT adapter in a folder, read once and handed on; the weights themselves are not read.

    Attributes:
        folder: The folder.
        name: Name of the checkpoint in error messages: the Hub id, or the folder.
        is_adapter: Whether it is a PEFT adapter rather than a whole model.
        config: Contents of `config.json`, or of an adapter's `adapter_config.json`.
        rgtg: Contents of `rgtg` in `config.json`, or of the `rgtg.json` beside an adapter; None if it has none.
        files: Names of all files in the folder, and of chat templates in its subfolders.
        variant: As in transformers: "fp16" for `model.fp16.safetensors`.
    """

    folder: Path
    name: str
    is_adapter: bool
    config: dict[str, Any]
    rgtg: dict[str, Any] | None
    files: frozenset[str]
    variant: str | None = None

    @classmethod
    def read(cls, folder: Path, name: str | None = None, variant: str | None = None) -> Checkpoint:
        """Reads the configuration in a folder; headers of the weights are read when they are first needed.

        Args:
            folder: Folder of a whole model or of an adapter. With both, it is read as the adapter, as transformers
                does.
            name: Name of the checkpoint in error messages; by default the folder.
            variant: As in transformers: "fp16" for `model.fp16.safetensors`.

        Raises:
            CheckpointError: If there is no configuration, or it is no JSON object.
        """
        name = str(folder) if name is None else name
        files = _list_files(folder)
        is_adapter = ADAPTER_CONFIG in files
        if not is_adapter and CONFIG not in files:
            raise CheckpointError(
                f"Expected {name!r} to be a folder with {CONFIG} or {ADAPTER_CONFIG}, but it has neither. Name the "
                "folder that a reward model was saved to."
            )
        if is_adapter:
            config = _read_json(folder / ADAPTER_CONFIG)
            rgtg = _read_json(folder / RGTG_FILE) if RGTG_FILE in files else None
        else:
            config = _read_json(folder / CONFIG)
            rgtg = config.get("rgtg")
        return cls(folder, name, is_adapter, config, rgtg, files, variant)

    @cached_property
    def weights(self) -> dict[str, frozenset[str]]:
        """Names of the weights in each safetensors file that transformers or PEFT loads, from the files' headers.

        Raises:
            CheckpointError: If there are no weights in safetensors, a file that the index lists is missing or lacks a
                weight, or a file is cut off, or its header does not fit it.
        """
        # Not read by `read`, because a model of the wrong architecture is to be reported as that, not as incomplete.
        if self.is_adapter:
            return _read_headers(self.folder, self.name, [ADAPTER_WEIGHTS])
        return _read_model_headers(self.folder, self.name, self.variant)

    @property
    def weight_names(self) -> frozenset[str]:
        """Names of all weights."""
        return frozenset().union(*self.weights.values())

    def shape(self, weight: str) -> list[int]:
        """The shape of a weight, from the header of its file."""
        with safe_open(self._file_of(weight), "pt") as tensors:
            return list(tensors.get_slice(weight).get_shape())

    def values(self, weight: str) -> list[float]:
        """The numbers of a small weight."""
        with safe_open(self._file_of(weight), "pt") as tensors:
            return [float(value) for value in tensors.get_tensor(weight).flatten()]

    def _file_of(self, weight: str) -> Path:
        return self.folder / next(file for file, names in self.weights.items() if weight in names)

    def check_weights(self) -> None:
        """Checks that the files of the weights are there and complete.

        Raises:
            CheckpointError: As `weights` does.
        """
        _ = self.weights  # Reading the headers is the check.

    def check_tokenizer(self) -> None:
        """Checks that the folder holds a tokenizer.

        Raises:
            CheckpointError: If it does not.
        """
        if not any(matches(file, TOKENIZER_FILES) for file in self.files):
            raise CheckpointError(
                f"Expected {self.name!r} to hold a tokenizer, without which it cannot read text, but it does not. "
                "Save the tokenizer there too (RewardModel(model, tokenizer))."
            )

    def check_one_model(self) -> None:
        """Checks that there is not a whole model beside an adapter.

        Raises:
            CheckpointError: If the folder holds both.
        """
        whole = sorted(file for file in self.files if matches(file, ("model*.safetensors*",)))
        if self.is_adapter and whole:
            raise CheckpointError(
                f"Expected {self.name!r} to hold one reward model, but it holds an adapter and a whole model "
                f"({', '.join(whole)}). Delete the one that is out of date: either {ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} "
                f"and {RGTG_FILE}, or the others."
            )

    def files_to_upload(self) -> list[str]:
        """Names of the files that a push uploads, and no others.

        They are the configuration, the weights in safetensors, the tokenizer, the card, and the images that it shows.
        Beside an adapter there is no `config.json`, because transformers (5.23) takes that for a whole model.
        """
        if self.is_adapter:
            names = [ADAPTER_CONFIG, RGTG_FILE]
        else:
            names = [CONFIG, "generation_config.json"]
            if set(self.weights) != {WEIGHTS}:
                names.append(INDEX)
        names += sorted(self.weights)
        names += sorted(name for name in self.files if matches(name, TOKENIZER_FILES))
        names += [CARD, *card_images(self.folder / CARD)]
        return [name for name in names if (self.folder / name).is_file()]


def _list_files(folder: Path) -> frozenset[str]:
    paths = [*folder.glob("*"), *folder.glob("*/*.jinja")]
    return frozenset(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def _read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
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


def _read_model_headers(folder: Path, name: str, variant: str | None) -> dict[str, frozenset[str]]:
    """Names of the weights of a whole model, which is one file or several that an index lists."""
    infix = f".{variant}" if variant else ""
    single_file = f"model{infix}.safetensors"
    index = f"model.safetensors.index{infix}.json"
    # In this order, as transformers looks for them.
    if (folder / single_file).is_file() or not (folder / index).is_file():
        return _read_headers(folder, name, [single_file])
    file_of_weight = _read_json(folder / index).get("weight_map", {})
    weights = _read_headers(folder, name, sorted(set(file_of_weight.values())))
    missing = sorted(weight for weight, file in file_of_weight.items() if weight not in weights[file])
    if missing or not file_of_weight:
        raise CheckpointError(
            f"Expected the files of {name!r} to hold every weight that {index} lists, but they lack "
            f"{', '.join(missing[:5]) or 'all'}. They are of different checkpoints: save or upload it again."
        )
    return weights


def _read_headers(folder: Path, name: str, files: list[str]) -> dict[str, frozenset[str]]:
    """Names of the weights in each of the files, all of which have to exist."""
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        return {file: _read_header(folder / file, name) for file in files}
    pickles = sorted(path.name for path in folder.glob("*") if matches(path.name, PICKLES))
    advice = ". Save it again."
    if pickles:
        advice = f" and has pickled weights ({', '.join(pickles)}). {PICKLES_ARE_REFUSED}"
    raise CheckpointError(
        f"Expected {name!r} to hold its weights in safetensors, but it lacks {', '.join(missing)}{advice}"
    )


def _read_header(file: Path, name: str) -> frozenset[str]:
    """Names of the weights in a file; its size is compared with the header as well."""
    try:
        with safe_open(file, "pt") as tensors:
            return frozenset(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Expected {file.name} of {name!r} to be a whole safetensors file, but it is cut off or damaged: {error}. "
            "Save or download it again (force_download=True)."
        ) from error
