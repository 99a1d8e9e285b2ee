"""Atomic checkpoints: checkpoints and models that are complete on disk or absent, whenever the process is killed.

transformers (5.23) writes `checkpoint-N` in place, and `get_last_checkpoint` takes the largest N, whatever is in that
folder. Here everything is written to a staging folder, whose name neither it nor `push_to_hub` looks at, synchronised
to the disk (fsync), and renamed in one atomic step. A checkpoint holds a list of its files, by which one that was
copied or deleted in part is recognised.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sized
from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rgtg_logits.errors import CheckpointError
from rgtg_logits.train.samplers import ResumableLengthGroupedSampler

logger = logging.getLogger(__name__)

STAGING = "_tmp-"
"""Prefix of staging folders; `Trainer.push_to_hub` leaves out names that begin with an underscore."""
FILE_LIST = "files.json"
"""Names and sizes of all files of a checkpoint."""
STATE = "trainer_state.json"
"""The trainer's state, which transformers writes last."""
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# A folder without a config is no model: configs are deleted first and moved last, so that no half model is loaded.
_CONFIGS = ("config.json", "adapter_config.json")
# Files of an earlier model that a later one may not replace, such as shards.
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors", "rgtg.json")


class AtomicCheckpointMixin(Trainer):
    """A trainer whose checkpoints and models are complete or absent, and which resumes from the newest complete one."""

    _staging: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Trains as `Trainer.train` does.

        Args:
            resume_from_checkpoint: True (or "true", as from a command line) for the newest complete checkpoint in
                `args.output_dir`, or the beginning if there is none yet; or the folder of a checkpoint.
            arguments: As in `Trainer.train`.
            options: As in `Trainer.train`.

        Raises:
            CheckpointError: If the given folder is not a complete checkpoint.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None:
            logger.warning("The training is resumed from %s.", checkpoint)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(None if checkpoint is None else str(checkpoint), *arguments, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model for `from_pretrained`, each file by an atomic rename, the config last."""
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
        """Ends as `Trainer.end` does, without its deadlock in several processes; to be called last."""
        # The distributed model is freed first: if its reducer is the last owner of the process group, it destroys the
        # group while it holds the GIL, for which the group's threads wait (torch 2.13, gloo).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # An evaluation in the order of the rows: grouped, the trainer (transformers 5.24) would look for lengths in
        # columns that pairs lack, and fail after the training.
        if not isinstance(eval_dataset, Sized):
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Without `train_dataset`, which lacks the column of lengths: only columns for the collator are left in it.
        sampler = super()._get_train_sampler()
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.data_seed or self.args.seed
        return ResumableLengthGroupedSampler(sampler, seed, lambda: int(self.state.epoch or 0))

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        # A finished training that is resumed would train for one more step (transformers 5.23).
        if options.get("resume_from_checkpoint") is not None and self._has_ended():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*arguments, **options)

    def _has_ended(self) -> bool:
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        return stopped_early or self.state.global_step >= self.state.max_steps

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output_dir = Path(self._get_output_dir(trial))
        target = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = output_dir / f"{STAGING}{target.name}"
        self._clear(staging)
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._rename_best_checkpoint(staging / target.name, target)
        # Every process writes some of the files.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            commit_checkpoint(staging / target.name, target)
            staging.rmdir()
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if self.args.should_save:
            rotate(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploads run in the background, so they begin once the folder has its final name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _rename_best_checkpoint(self, written: Path, target: Path) -> None:
        """Replaces the staging folder by its final name where the trainer's state names it as the best checkpoint."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == written:
            self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(written / STATE))

    def _clear(self, staging: Path) -> None:
        """Removes the leftovers of an interrupted save, before any process writes."""
        if self.args.should_save and staging.exists():
            shutil.rmtree(staging)
        self.accelerator.wait_for_everyone()


def find_checkpoint(resume_from: str | bool | None, folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint to resume from; None for the beginning.

    Args:
        resume_from: None or False for the beginning, True for the newest complete checkpoint in `folder` if there is
            one, or a checkpoint's folder. A command line gives True and False as text.
        folder: The folder of checkpoints.

    Raises:
        CheckpointError: If `resume_from` is a folder and not a complete checkpoint.
    """
    if isinstance(resume_from, str) and resume_from.lower() in ("true", "false"):
        resume_from = resume_from.lower() == "true"
    if resume_from is None or resume_from is False:
        return None
    if resume_from is True:
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            logger.warning(
                "There is no checkpoint in %s to resume from yet: training starts from the beginning.", folder
            )
        return checkpoint
    problem = find_problem(Path(resume_from))
    if problem is not None:
        raise CheckpointError(
            f"Expected a complete checkpoint to resume from, but in {str(resume_from)!r} {problem}. Name another one, "
            "or pass True for the newest complete one."
        )
    return Path(resume_from)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint with the largest step in a folder, if there is one; warns of incomplete ones."""
    for checkpoint in reversed(_checkpoints(Path(folder))):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("The checkpoint %s is skipped, because %s.", checkpoint, problem)
    return None


def find_problem(checkpoint: Path) -> str | None:
    """The reason why a checkpoint is incomplete, in words; None if it is complete.

    A checkpoint that this library wrote is compared with the list of its files. Of others only the trainer's state is
    checked, which transformers writes last.
    """
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"there is no {STATE}"
    except ValueError:
        return f"{STATE} is not complete"
    file_list = checkpoint / FILE_LIST
    if not file_list.is_file():
        return None
    for name, size in json.loads(file_list.read_text(encoding="utf-8")).items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def commit_checkpoint(written: Path, target: Path) -> None:
    """Renames a checkpoint to its final name once all of it is on the disk; replaces one of that name."""
    sizes = {path.relative_to(written).as_posix(): path.stat().st_size for path in _files(written)}
    (written / FILE_LIST).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    # fsync before the rename, because a file system may otherwise persist the new name before the contents.
    _fsync_folder(written)
    if target.exists():
        delete(target)
    written.rename(target)
    _fsync(target.parent)


def replace_model(written: Path, target: Path) -> None:
    """Moves a model's files into a folder, which holds no loadable model until the last file, the config, is there."""
    _fsync_folder(written)
    for pattern in (*_CONFIGS, *_WEIGHTS):
        for old in target.glob(pattern):
            old.unlink()
    configs_last = sorted(written.iterdir(), key=lambda path: (path.name in _CONFIGS, path.name))
    for path in configs_last:
        if (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        if path.name in _CONFIGS:
            # All other files have to be on the disk before the config makes them a model.
            _fsync(target)
        path.replace(target / path.name)
    written.rmdir()
    _fsync(target)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints over a limit (`save_total_limit`), but neither the newest nor the best one."""
    if limit is None or limit <= 0:
        return
    by_age = sorted(_checkpoints(folder), key=lambda path: (path.stat().st_mtime_ns, _step(path)))
    deletable = [path for path in by_age[:-1] if best is None or path != Path(best)]
    excess = max(0, len(by_age) - limit)
    for path in deletable[:excess]:
        delete(path)


def delete(checkpoint: Path) -> None:
    """Deletes a checkpoint; the rename before makes it disappear at once, even if the deletion is interrupted."""
    doomed = checkpoint.with_name(f"{STAGING}deleted-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the staging folders that interrupted saves have left."""
    for path in Path(folder).glob(f"{STAGING}*"):
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, ordered by step."""
    if not folder.is_dir():
        return []
    checkpoints = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(checkpoints, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fsync_folder(folder: Path) -> None:
    """Waits until all files and folders in a folder, with modes as of any file, would survive a loss of power."""
    _set_modes(folder)
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [*_files(folder), *folders, folder]:
        _fsync(path)


def _set_modes(folder: Path) -> None:
    """Gives all files the mode of a new file, by the umask: safetensors (0.6) makes files for their owner alone."""
    probe = folder / f"{STAGING}mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in _files(folder):
        path.chmod(mode)


def _fsync(path: Path) -> None:
    # On other systems folders cannot be opened, and files that are opened for reading cannot be synchronised.
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
