"""A reward model's way out: to a folder, and to the Hub."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from rgtg_logits.errors import CheckpointError, HubError, InvalidArgumentError, RewardModelError
from rgtg_logits.hub import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CARD,
    PushOptions,
    check_tokenizer,
    checkpoint_files,
    is_adapter,
    pictures,
    read_json,
    stale_files,
    upload,
    weight_names,
)
from rgtg_logits.reward_model.config import RewardModelConfig, read_config
from rgtg_logits.reward_model.loading import HEADS, adapter_kind, check_architecture


class SavingMixin:
    """What `RewardModel` does to get onto disk and onto the Hub."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    config: RewardModelConfig
    _inner: PreTrainedModel

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str | None = None) -> None:
        """Writes the checkpoint (safetensors, config with `rgtg`, tokenizer); each file appears whole or not at all.

        Weights and configurations of an older checkpoint in the folder, which the new one does not have, are deleted.

        Args:
            folder: Where to; created if it does not exist.
            max_shard_size: Largest file of weights, in bytes or as "5GB"; by default as in transformers. The weights
                of an adapter are one file.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self._inner.config.rgtg = self.config.to_dict()
        is_whole = self.model is self._inner
        sizes = {"max_shard_size": max_shard_size} if max_shard_size is not None and is_whole else {}
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            cast(Any, self.model).save_pretrained(partial, **sizes)
            # An empty form, by peft.
            (partial / CARD).unlink(missing_ok=True)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(partial)
            if not is_whole:
                (partial / ADAPTER_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
            new = [file.name for file in partial.iterdir()]
            # The config goes last because a folder without it is not taken for a checkpoint.
            for file in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                _replace(file, target / file.name)
            for name in stale_files([file.name for file in target.iterdir()], new):
                (target / name).unlink()
        finally:
            shutil.rmtree(partial)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        adapter: bool | None = None,
        card: str | os.PathLike[str] | None = None,
        max_shard_size: int | str = "5GB",
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload reward model",
        commit_description: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> str:
        """Uploads the checkpoint to the Hub in one commit, or not at all.

        Uploaded are the weights in safetensors, the configuration, the tokenizer and the card, and nothing else. Files
        of an older checkpoint in the repository, which this one does not have, are deleted in the same commit. A
        repository or branch that does not exist is created, and deleted again if the commit fails.

        Args:
            repo_id: Name on the Hub: "organisation/name", or "name" for the user's own.
            adapter: Of a model with an adapter (PEFT): True to upload the adapter alone, False to upload the base model
                with the adapter merged into its weights, for which memory for a second copy is needed; the model
                itself stays as it is. By default it is merged, except into a quantised base model, which cannot be
                done exactly: then the adapter is uploaded, with a warning.
            card: The file of a card, which becomes README.md. Pictures that it names by a relative path come along.
            max_shard_size: Largest file of weights, in bytes or as "5GB".
            private: Whether a repository that is created is private; by default as the namespace's settings say.
            revision: The branch, created from main if it does not exist; main by default.
            commit_message: Title of the commit.
            commit_description: Its further text.
            create_pr: Whether to open a pull request instead of committing to main.
            token: Access token with write permission; by default that of HF_TOKEN or of `hf auth login`.

        Returns:
            The address of the commit or of the pull request.

        Raises:
            HubError: If the Hub refuses or fails, or the connection does.
            InvalidArgumentError: If the arguments contradict each other or the model.
            RewardModelError: If an adapter cannot be merged.
            CheckpointError: If others could not load what would be uploaded: without a tokenizer, or an adapter on a
                base model that is not on the Hub.
        """
        options = PushOptions(
            private=private, revision=revision, commit_message=commit_message, commit_description=commit_description,
            create_pr=create_pr, token=token,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "checkpoint")
            ready = self if self._keeps_adapter(adapter) else self._merged()
            try:
                ready.save_pretrained(folder, max_shard_size=max_shard_size)
                if card is not None:
                    add_card(Path(card), folder)
            except (OSError, SafetensorError) as error:
                raise HubError(
                    f"Expected to write the files for {repo_id!r} to {place!r} first, but that failed: {error}. "
                    "Nothing was uploaded. Free some space there, or set TMPDIR to a folder on another disk."
                ) from error
            return push_folder(folder, repo_id, options)

    def _keeps_adapter(self, adapter: bool | None) -> bool:
        """Whether the model goes out as it is, which for one without an adapter is the only way."""
        has_adapter = self.model is not self._inner
        if adapter and not has_adapter:
            raise InvalidArgumentError(
                "Expected a model with an adapter, because of adapter=True, but it has none. Leave adapter out."
            )
        quantised = getattr(self._inner, "is_quantized", False)
        if not has_adapter or adapter is not None or not quantised:
            return not has_adapter or bool(adapter)
        warnings.warn(
            "The adapter is uploaded without its base model, which is quantised, so that merging would round its "
            "weights. Pass adapter=True if that is meant; for whole weights load it without quantisation.",
            stacklevel=3,
        )
        return True

    def _merged(self) -> Self:
        """The same reward model with the adapter inside the weights of a copy."""
        if getattr(self._inner, "is_quantized", False):
            raise RewardModelError(
                "Expected a base model that is not quantised, because merging an adapter into its weights would round "
                "them, but it is. Push the adapter (adapter=True), or load it without quantisation and push that."
            )
        model = cast(Any, copy.deepcopy(self.model))
        try:
            whole = model.merge_and_unload(safe_merge=True)
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise RewardModelError(
                f"Expected an adapter that can be merged into the weights of its base model, but it cannot: {error}. "
                "Push the adapter (adapter=True)."
            ) from error
        return type(self)(whole, self.tokenizer, config=self.config)  # type: ignore[call-arg]


def _replace(source: Path, target: Path) -> None:
    """Moves a file over another one, or a folder's files into another folder."""
    if not source.is_dir():
        source.replace(target)
        return
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        file.replace(target / file.name)


def add_card(card: Path, folder: Path) -> None:
    """Copies a card into a folder as README.md, with the pictures in its own folder that it shows.

    Raises:
        InvalidArgumentError: If there is no such file.
    """
    if not card.is_file():
        raise InvalidArgumentError(f"Expected card to be a file, but there is no {str(card)!r}. Write the card first.")
    shutil.copyfile(card, folder / CARD)
    for name in pictures(card):
        if (card.parent / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card.parent / name, folder / name)


def push_folder(folder: Path, repo_id: str, options: PushOptions) -> str:
    """Uploads the checkpoint in a folder in one commit, if it is a reward model that others can load.

    Args:
        folder: Holds the checkpoint, and whatever else, which stays where it is.
        repo_id: Name on the Hub.
        options: Where it goes and what the commit says.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        CheckpointError: As `check_checkpoint` does.
        RewardModelError: As `check_checkpoint` does.
        HubError: If the Hub refuses or fails, or the connection does.
    """
    check_checkpoint(folder)
    return upload(folder, repo_id, options)


def check_checkpoint(folder: Path) -> None:
    """Checks by configuration and headers that a folder holds a reward model; no weight is read.

    Raises:
        CheckpointError: If it is no checkpoint, its weights are pickled, cut off, damaged or incomplete, it has no
            reward head, nobody else could get its base model, or it lacks a tokenizer.
        RewardModelError: If it gives no single reward for every prefix.
    """
    name = str(folder)
    adapter = is_adapter(folder)
    if not adapter and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected {name!r} to be a folder with config.json or {ADAPTER_CONFIG}, but it has neither. Name the "
            "folder that a reward model was saved to."
        )
    checkpoint_files(folder)
    weights = set().union(*weight_names(folder, name).values())
    needs_head = _check_adapter(folder) if adapter else _check_whole(folder)
    if needs_head and not any(part in HEADS for weight in weights for part in weight.split(".")):
        raise CheckpointError(
            f"Expected {name!r} to hold the weights of a reward head ({' or '.join(HEADS[:2])}), but it does not, and "
            "they would be random. Train the model first (rgtg train)."
        )


def _check_whole(folder: Path) -> bool:
    """Whether rewards are read by a head."""
    name = str(folder)
    values = read_json(folder / "config.json")
    stored = values.get("rgtg")
    kind = read_config(stored, None).kind
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"Expected {name!r} to be of an architecture that transformers ships, but its config.json cannot be read: "
            f"{error} Save it with a current transformers; code of its own is never run."
        ) from error
    check_architecture(config, name, kind)
    check_tokenizer(folder, name)
    if stored is None:
        _warn_of_silence(name)
    return kind == "causal"


def _check_adapter(folder: Path) -> bool:
    """Whether the adapter has to bring the head."""
    name, values = str(folder), read_json(folder / ADAPTER_CONFIG)
    stored = read_json(folder / ADAPTER_FILE) if (folder / ADAPTER_FILE).is_file() else None
    task, base = values.get("task_type"), str(values.get("base_model_name_or_path") or "")
    adapter_kind(name, task, stored, None)
    if not base or Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise CheckpointError(
            f"Expected the adapter {name!r} to name its base model by its Hub id, but it names {base!r}, which nobody "
            "else can get. Push the merged weights instead (adapter=False), or push the base model first and load it "
            "by its id."
        )
    if stored is None:
        _warn_of_silence(name)
    return task == "SEQ_CLS"


def _warn_of_silence(name: str) -> None:
    warnings.warn(
        f"{name!r} does not say how it was trained, so whoever loads it will be told that its rewards of prefixes are "
        "untrained. If that is wrong, save it by RewardModel(model, tokenizer, config=RewardModelConfig(objective=…)).",
        stacklevel=4,
    )
