"""Checkpoints and models that are on disk whole or not at all, whenever the process is killed.

transformers (5.23) writes `checkpoint-N` in place, and `get_last_checkpoint` takes the largest N, whatever is in that
folder. Here everything is written under a name that neither it nor `push_to_hub` looks at, brought to the disk, and
renamed. A list of its files goes with a checkpoint, so that one which was copied or deleted in part is told too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rgtg_logits.errors import CheckpointError
from rgtg_logits.train.repeatable_order import RepeatableOrder

logger = logging.getLogger(__name__)

# `Trainer.push_to_hub` leaves out what begins with an underscore.
STAGING = "_tmp-"
FILE_LIST = "files.json"
STATE = "trainer_state.json"
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# Without one of them a folder is not taken for a model, so they go first and come last.
_CONFIGS = ("config.json", "adapter_config.json")
# What an earlier model may have left that a later one does not replace, such as shards.
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors", "rgtg.json")


class AtomicCheckpointMixin(Trainer):
    """A trainer whose checkpoints and models are there whole or not at all, and which finds the newest whole one."""

    _staging: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Trains as `Trainer.train` does.

        Args:
            resume_from_checkpoint: True (or "true", as from a command line) for the newest whole checkpoint in
                `args.output_dir`, or the beginning if there is none yet; a folder for that one.
            arguments: As in `Trainer.train`.
            options: As in `Trainer.train`.

        Raises:
            CheckpointError: If the folder named is not a whole checkpoint.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(None if checkpoint is None else str(checkpoint), *arguments, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model for `from_pretrained`: each file whole or not at all, the config last."""
        if self._staging is not None:
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir if output_dir is not None else self.args.output_dir)
        staging = target / f"{STAGING}model"
        self._clear(staging)
        super().save_model(str(staging), _internal_call=True)
        self.accelerator.wait_for_everyone()
        # With sharded states (FSDP) there is nothing to move: only checkpoints hold them.
        if self.args.should_save and staging.is_dir():
            replace_model(staging, target)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def end(self) -> None:
        """Ends as `Trainer.end` does, to be called last; with several processes it does not wait for ever."""
        # The distributed model goes first: its reducer, when it is the last to hold the group of processes, takes the
        # group down while it keeps Python from running, for which the group's threads wait (torch 2.13, gloo).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Of the data with all columns, because the one with lengths is not among those that the collator reads.
        sampler = super()._get_train_sampler()
        if isinstance(sampler, LengthGroupedSampler):
            return RepeatableOrder(sampler, self.args.data_seed or self.args.seed, lambda: int(self.state.epoch or 0))
        return sampler

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        # A training that had come to its end and is resumed would go on for a step (transformers 5.23).
        if options.get("resume_from_checkpoint") is not None and self._has_ended():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*arguments, **options)

    def _has_ended(self) -> bool:
        return self.state.global_step >= self.state.max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        target = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run / f"{STAGING}{target.name}"
        self._clear(staging)
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._correct_best(staging / target.name, target)
        # Every process writes a part.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            commit_checkpoint(staging / target.name, target)
            staging.rmdir()
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploads go on in the background, so they wait for the folder's final name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _correct_best(self, written: Path, target: Path) -> None:
        """Writes the final name where the trainer has noted that the best checkpoint is the one just written."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == written:
            self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(written / STATE))

    def _clear(self, staging: Path) -> None:
        """Removes what an interrupted save has left, before any process writes."""
        if self.args.should_save and staging.exists():
            shutil.rmtree(staging)
        self.accelerator.wait_for_everyone()


def find_checkpoint(wanted: str | bool | None, folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint to resume from; None for the beginning.

    Args:
        wanted: None or False for the beginning, True for the newest whole checkpoint in `folder` if there is one, or a
            checkpoint's folder. A command line gives True and False as text.
        folder: Where checkpoints are.

    Raises:
        CheckpointError: If `wanted` is a folder and not a whole checkpoint.
    """
    if isinstance(wanted, str) and wanted.lower() in ("true", "false"):
        wanted = wanted.lower() == "true"
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        found = last_checkpoint(folder)
        if found is None:
            logger.warning(
                "There is no checkpoint in %s to resume from yet: training starts from the beginning.", folder
            )
        return found
    problem = find_problem(Path(wanted))
    if problem is not None:
        raise CheckpointError(
            f"Expected a whole checkpoint to resume from, but in {str(wanted)!r} {problem}. Name another one, or pass "
            "True for the newest whole one."
        )
    return Path(wanted)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The whole checkpoint with the largest step in a folder, if there is one; others are passed over and told."""
    for checkpoint in reversed(_checkpoints(Path(folder))):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("The checkpoint %s is passed over, because %s.", checkpoint, problem)
    return None


def find_problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole.

    The files of a checkpoint that this library wrote are known. Of others only the trainer's state is looked at, which
    transformers writes last.
    """
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"there is no {STATE}"
    except ValueError:
        return f"{STATE} is not whole"
    listed = checkpoint / FILE_LIST
    if not listed.is_file():
        return None
    for name, size in json.loads(listed.read_text(encoding="utf-8")).items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def commit_checkpoint(written: Path, target: Path) -> None:
    """Gives a checkpoint its name once all of it is on the disk; one of that name is replaced."""
    sizes = {path.relative_to(written).as_posix(): path.stat().st_size for path in _files(written)}
    (written / FILE_LIST).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    _to_disk(written)
    if target.exists():
        delete(target)
    written.rename(target)
    _sync(target.parent)


def replace_model(written: Path, target: Path) -> None:
    """Moves a model's files into a folder, in which a model is found neither before the first nor before the last."""
    _to_disk(written)
    for pattern in (*_CONFIGS, *_WEIGHTS):
        for old in target.glob(pattern):
            old.unlink()
    for path in sorted(written.iterdir(), key=lambda path: (path.name in _CONFIGS, path.name)):
        if (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        if path.name in _CONFIGS:
            _sync(target)
        path.replace(target / path.name)
    written.rmdir()
    _sync(target)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints over a limit, but neither the newest nor the best (`save_total_limit`)."""
    found = sorted(_checkpoints(folder), key=lambda path: (path.stat().st_mtime_ns, _step(path)))
    if limit is None or limit <= 0:
        return
    spare = [path for path in found[:-1] if best is None or path != Path(best)]
    for path in spare[: max(0, len(found) - limit)]:
        delete(path)


def delete(checkpoint: Path) -> None:
    """Deletes a checkpoint, which from the first moment on is no longer found."""
    doomed = checkpoint.with_name(f"{STAGING}deleted-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what interrupted saves have left."""
    for path in Path(folder).glob(f"{STAGING}*"):
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by their steps."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _to_disk(folder: Path) -> None:
    """Waits until all of a folder would survive a loss of power."""
    for path in [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    # Elsewhere folders cannot be opened, nor files that are only read be synchronised.
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
