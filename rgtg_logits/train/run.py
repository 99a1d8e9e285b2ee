"""The body of `rgtg train`: parses the arguments of `trl reward`, trains, saves a checkpoint with its card."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from rich.console import Console
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from rgtg_logits.data_files import DATA_FILE_BUILDERS, builder_for, open_splits, reading
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.arguments import TrainingParser
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.models import HALF_WEIGHTS
from rgtg_logits.train.splits import choose_splits
from rgtg_logits.train.summary import summarize
from rgtg_logits.train.trainer import PartialRewardTrainer

logger = logging.getLogger(__name__)

_SUFFIXES = [suffix for suffix, builder in DATA_FILE_BUILDERS.items() if builder != "text"]
"""Suffixes of files with columns."""


def make_parser() -> TrainingParser:
    """Reads the arguments of a training."""
    parser = TrainingParser()
    # One commit, of what was trained; not one for each checkpoint on the way.
    parser.set_defaults(hub_strategy="end")
    return parser


def train(argv: list[str] | None = None, *, allow_unknown: bool = False) -> None:
    """Trains, evaluates and saves a reward model as command-line arguments say.

    The arguments are those of `trl reward` and of `PartialRewardConfig` (`--objective`, `--kind`, …); `--config
    file.yaml` holds any of them. `--dataset_name` is a Hub id, a folder, or a file (json, jsonl, csv, each also as .gz,
    or parquet); instead of it, `datasets:` in the file lists the parts of a mixture (`trl.DatasetMixtureConfig`). The
    model, its tokenizer and its card are saved to `--output_dir`, and after that evaluated: on the split
    `--dataset_test_split` ("test" by default), or on 5 % of the rows that were held out ("none" evaluates nothing).
    `--push_to_hub` uploads them in one commit. An adapter is merged into its base model for the upload, unless that is
    quantised. `--hub_strategy every_save` uploads
    every checkpoint too.

    Args:
        argv: Arguments without the program's name; by default those of the process.
        allow_unknown: Whether a `--config` file may hold unknown keys, such as arguments of `accelerate launch`.

    Raises:
        InvalidArgumentError: If there is no model, no data set, or no such split or file type.
    """
    script, args, model, mixture = make_parser().parse_args_and_config(argv, fail_with_unknown_args=not allow_unknown)
    if not mixture.datasets:
        _required(script.dataset_name, "--dataset_name")
    base = _required(model.model_name_or_path, "--model_name_or_path")
    if model.dtype == "float16":
        raise InvalidArgumentError(HALF_WEIGHTS)
    data, name = _load_splits(script, mixture)
    splits = choose_splits(data, script, args, name)
    args.model_init_kwargs = _model_options(model, args)
    with reading(str(name), "--dataset_name") if script.dataset_streaming else nullcontext():
        trainer = PartialRewardTrainer(
            base,
            args,
            train_dataset=splits.train,
            eval_dataset=splits.evaluation,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    # Before anything that may fail.
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.create_model_card(dataset_name=name)
    if splits.evaluation is not None:
        trainer.evaluate()
        trainer.save_config()
        trainer.create_model_card(dataset_name=name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=name)
    if trainer.is_world_process_zero():
        pairs = args.objective_definition.data == "pairs"
        summary = summarize(str(args.output_dir), base, trainer.evaluations, splits.source, pairs=pairs)
        Console().print(summary, markup=False, highlight=False, soft_wrap=True)
    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()


def load_training_data(name: str, config: str | None = None, *, streaming: bool = False) -> Any:
    """Loads training data from the Hub, a folder (data files, or what `save_to_disk` wrote), or a file.

    Args:
        name: Hub id or path.
        config: Configuration of a data set on the Hub.
        streaming: Whether to read while training, without loading everything first.

    Returns:
        The data set's splits; those of a file are `{"train": ...}`.

    Raises:
        InvalidArgumentError: If the file is of an unknown type, damaged or empty.
    """
    path = Path(name)
    if path.is_file() and builder_for(name) in (None, "text"):
        raise InvalidArgumentError(
            f"Expected a data file that ends in one of {', '.join(_SUFFIXES[:4])} (or {', '.join(_SUFFIXES[4:])}; "
            f"perhaps with .gz or .zst), but got "
            f"{path.name!r}. Convert it, or name a folder or a Hub id."
        )
    return open_splits(name, "--dataset_name", config=config, streaming=streaming)


def _load_splits(script: ScriptArguments, mixture: DatasetMixtureConfig) -> tuple[Any, str | None]:
    """The splits of the data set or mixture, and its name if it has one."""
    if not mixture.datasets:
        name = str(script.dataset_name)
        return load_training_data(name, script.dataset_config, streaming=script.dataset_streaming), name
    if script.dataset_name:
        logger.warning("The mixture in datasets is used, so dataset_name %r is not read.", script.dataset_name)
    mixture_name: str | None = None
    # With data_files, the path names a file format.
    if len(mixture.datasets) == 1 and not mixture.datasets[0].data_files:
        mixture_name = mixture.datasets[0].path
    return get_dataset(mixture), mixture_name


def _required(value: str | None, flag: str) -> str:
    if not value:
        raise InvalidArgumentError(f"Expected {flag}, but it was not given. Pass a Hub id or a local path.")
    return value


def _model_options(model: ModelConfig, args: PartialRewardConfig) -> dict[str, Any]:
    """Keyword arguments for loading the model; `--model_init_kwargs` takes precedence."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {**options, **(args.model_init_kwargs or {})}
