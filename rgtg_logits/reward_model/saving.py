"""Saving of a reward model to a folder, and its push to the Hub."""

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
from rgtg_logits.hub import CARD, CONFIG, RGTG_FILE, Checkpoint, PushOptions, card_images, obsolete_files, upload
from rgtg_logits.reward_model.config import RewardModelConfig, read_config
from rgtg_logits.reward_model.loading import HEADS, adapter_kind, check_architecture


class SavingMixin:
    """The methods of `RewardModel` that write it to disk and push it to the Hub."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    config: RewardModelConfig
    _inner: PreTrainedModel

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str | None = None) -> None:
        """Writes the checkpoint (safetensors, config with `rgtg`, tokenizer); each file appears whole or not at all.

        Weights and configurations of an older checkpoint in the folder are deleted if the new one does not have them.

        Args:
            folder: Destination; created if it does not exist.
            max_shard_size: Largest file of weights, in bytes or as "5GB"; by default as in transformers. The weights
                of an adapter are one file.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a file can be moved atomically only within a file system.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            self._write_files(partial, max_shard_size)
            _install_checkpoint(partial, target)
        finally:
            shutil.rmtree(partial)

    @property
    def _has_adapter(self) -> bool:
        return self.model is not self._inner

    def _write_files(self, folder: Path, max_shard_size: int | str | None) -> None:
        """Writes all files of the checkpoint to an empty folder."""
        self._inner.config.rgtg = self.config.to_dict()
        options = {}
        if max_shard_size is not None and not self._has_adapter:
            options["max_shard_size"] = max_shard_size
        cast(Any, self.model).save_pretrained(folder, **options)
        # peft writes an empty template of a card.
        (folder / CARD).unlink(missing_ok=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self._has_adapter:
            (folder / RGTG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

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

        Only the weights in safetensors, the configuration, the tokenizer and the card with its images are uploaded.
        Files of an older checkpoint in the repository that this one does not have are deleted in the same commit. A
        repository or branch that does not exist is created, and deleted again if the commit fails.

        Args:
            repo_id: Name on the Hub: "organisation/name", or "name" for the user's own.
            adapter: For a model with an adapter (PEFT): True to upload the adapter alone, False to upload the base
                model with the adapter merged into its weights, which needs memory for a second copy; the model itself
                stays as it is. By default it is merged. Merging into a quantised base model cannot be exact: then the
                default is to upload the adapter, with a warning.
            card: The file of a card, which becomes README.md. Images that it shows by a relative path are uploaded too.
            max_shard_size: Largest file of weights, in bytes or as "5GB".
            private: Whether a repository that is created is private; by default as the namespace's settings say.
            revision: The branch, created from main if it does not exist; main by default.
            commit_message: Title of the commit.
            commit_description: Text below the title.
            create_pr: Whether to open a pull request instead of committing to main.
            token: Access token with write permission; by default that of HF_TOKEN or of `hf auth login`.

        Returns:
            The address of the commit or of the pull request.

        Raises:
            HubError: If the Hub refuses or fails, or the connection does.
            InvalidArgumentError: If the arguments contradict each other or the model.
            RewardModelError: If an adapter cannot be merged.
            CheckpointError: If others could not load it: it has no tokenizer, or it is an adapter on a base model that
                is not on the Hub.
        """
        options = PushOptions(
            private=private, revision=revision, commit_message=commit_message, commit_description=commit_description,
            create_pr=create_pr, token=token,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "checkpoint")
            model = self._merge_adapter() if self._has_to_merge(adapter) else self
            try:
                model.save_pretrained(folder, max_shard_size=max_shard_size)
                if card is not None:
                    add_card(Path(card), folder)
            except (OSError, SafetensorError) as error:
                raise HubError(
                    f"Expected to write the files for {repo_id!r} to {temporary!r} first, but that failed: {error}. "
                    "Nothing was uploaded. Free some space there, or set TMPDIR to a folder on another disk."
                ) from error
            return push_folder(folder, repo_id, options)

    def _has_to_merge(self, adapter: bool | None) -> bool:
        """Whether to push a copy with the adapter merged into the weights."""
        if not self._has_adapter:
            if adapter:
                raise InvalidArgumentError(
                    "Expected a model with an adapter, because of adapter=True, but it has none. Leave adapter out."
                )
            return False
        if adapter is not None:
            return not adapter
        if not getattr(self._inner, "is_quantized", False):
            return True
        warnings.warn(
            "The adapter is uploaded without its base model, which is quantised, so that merging would round its "
            "weights. Pass adapter=True if that is meant; for whole weights load it without quantisation.",
            stacklevel=3,
        )
        return False

    def _merge_adapter(self) -> Self:
        """A copy of the reward model with the adapter merged into its weights."""
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


def _install_checkpoint(source: Path, target: Path) -> None:
    """Moves a checkpoint into a folder and deletes what is left there of an older one."""
    new = [file.name for file in source.iterdir()]
    # The config goes last because a folder without it is not taken for a checkpoint.
    for file in sorted(source.iterdir(), key=lambda path: path.name == CONFIG):
        _replace(file, target / file.name)
    existing = [file.name for file in target.iterdir()]
    for name in obsolete_files(existing, new):
        (target / name).unlink()


def _replace(source: Path, target: Path) -> None:
    """Moves a file over another one, or a folder's files into another folder."""
    if not source.is_dir():
        source.replace(target)
        return
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        file.replace(target / file.name)


def add_card(card: Path, folder: Path) -> None:
    """Copies a card into a folder as README.md, together with the images in its own folder that it shows.

    Raises:
        InvalidArgumentError: If there is no such file.
    """
    if not card.is_file():
        raise InvalidArgumentError(f"Expected card to be a file, but there is no {str(card)!r}. Write the card first.")
    shutil.copyfile(card, folder / CARD)
    for name in card_images(card):
        if (card.parent / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card.parent / name, folder / name)


def push_folder(folder: Path, repo_id: str, options: PushOptions) -> str:
    """Uploads the checkpoint in a folder in one commit, if it is a reward model that others can load.

    Args:
        folder: A folder with a checkpoint; other files in it are not uploaded.
        repo_id: Name on the Hub.
        options: Destination, and title and text of the commit.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        CheckpointError: As `Checkpoint.read` and `check_checkpoint` do.
        RewardModelError: As `check_checkpoint` does.
        HubError: If the Hub refuses or fails, or the connection does.
    """
    checkpoint = Checkpoint.read(folder)
    check_checkpoint(checkpoint)
    return upload(checkpoint, repo_id, options)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Checks by configuration and names of weights that a checkpoint is a reward model that others can load.

    Raises:
        CheckpointError: If its weights are pickled, cut off, damaged or incomplete, it is an adapter and a whole model,
            it has no reward head, nobody else could get its base model, or it lacks a tokenizer.
        RewardModelError: If it gives no single reward for every prefix.
    """
    checkpoint.check_weights()
    checkpoint.check_one_model()
    needs_head = _check_adapter(checkpoint) if checkpoint.is_adapter else _check_whole_model(checkpoint)
    modules = {module for weight in checkpoint.weight_names for module in weight.split(".")}
    if needs_head and modules.isdisjoint(HEADS):
        raise CheckpointError(
            f"Expected {checkpoint.name!r} to hold the weights of a reward head ({' or '.join(HEADS[:2])}), but it "
            "does not, and they would be random. Train the model first (rgtg train)."
        )
    if checkpoint.rgtg is None:
        warnings.warn(
            f"{checkpoint.name!r} does not say how it was trained, so whoever loads it will be told that its rewards "
            "of prefixes are untrained. If that is wrong, save it by "
            "RewardModel(model, tokenizer, config=RewardModelConfig(objective=…)).",
            stacklevel=3,
        )


def _check_whole_model(checkpoint: Checkpoint) -> bool:
    """Checks architecture and tokenizer; returns whether rewards are read by a head."""
    name = checkpoint.name
    kind = read_config(checkpoint.rgtg, None).kind
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"Expected {name!r} to be of an architecture that transformers ships, but its config.json cannot be read: "
            f"{error} Save it with a current transformers; code of its own is never run."
        ) from error
    check_architecture(config, name, kind)
    checkpoint.check_tokenizer()
    return kind == "causal"


def _check_adapter(checkpoint: Checkpoint) -> bool:
    """Checks task type and base model; returns whether the adapter has to bring the head."""
    name = checkpoint.name
    task = checkpoint.config.get("task_type")
    adapter_kind(name, task, checkpoint.rgtg, None)
    base = str(checkpoint.config.get("base_model_name_or_path") or "")
    is_path = Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1
    if not base or is_path:
        raise CheckpointError(
            f"Expected the adapter {name!r} to name its base model by its Hub id, but it names {base!r}, which nobody "
            "else can get. Push the merged weights instead (adapter=False), or push the base model first and load it "
            "by its id."
        )
    return task == "SEQ_CLS"
