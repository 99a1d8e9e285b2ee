"""`rgtg train`: the arguments of `trl reward`, a training, a checkpoint with its card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers
from datasets import load_dataset, load_from_disk
from packaging.version import Version
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.arguments import TrainingParser
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.trainer import PartialRewardTrainer

logger = logging.getLogger(__name__)

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def make_parser() -> TrainingParser:
    """Reads the arguments of a training."""
    parser = TrainingParser()
    # One commit, of what was trained; not one for each checkpoint on the way.
    parser.set_defaults(hub_strategy="end")
    return parser


def train(argv: list[str] | None = None, *, allow_unknown: bool = False) -> None:
    """Trains a reward model as told by command-line arguments, evaluates and saves it.

    The arguments are those of `trl reward` and of `PartialRewardConfig` (`--objective`, `--kind`, …); `--config
    file.yaml` holds any of them. `--dataset_name` is a Hub id, a folder, or a file (json, jsonl, csv, each also as .gz,
    or parquet); in its stead, `datasets:` in the file lists those of a mixture (`trl.DatasetMixtureConfig`). Where the
    data have the split `--dataset_test_split` ("test" by default), the model is evaluated on it after training. The
    folder `--output_dir` gets the model, its tokenizer and its card, and `--push_to_hub` uploads them in one commit, an
    adapter merged into its base model unless that is quantised; `--hub_strategy every_save` uploads every checkpoint
    too.

    Args:
        argv: Arguments without the program's name; by default those of the process.
        allow_unknown: Whether a `--config` file may hold other things, such as arguments of `accelerate launch`.

    Raises:
        InvalidArgumentError: If there is no model, no data set, or no such split or file type.
    """
    script, args, model, mixture = make_parser().parse_args_and_config(argv, fail_with_unknown_args=not allow_unknown)
    if not mixture.datasets:
        _given(script.dataset_name, "--dataset_name")
    base = _given(model.model_name_or_path, "--model_name_or_path")
    data, name = _data(script, mixture)
    test = script.dataset_test_split if script.dataset_test_split in data or args.eval_strategy != "no" else None
    args.model_init_kwargs = _model_options(model, args)
    trainer = PartialRewardTrainer(
        base,
        args,
        train_dataset=_split(data, script.dataset_train_split, name),
        eval_dataset=_split(data, test, name) if test is not None else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if test is not None:
        trainer.evaluate()
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=name)
    else:
        trainer.save_model(args.output_dir)
        trainer.create_model_card(dataset_name=name)
    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()


def load_pairs(name: str, config: str | None = None, *, streaming: bool = False) -> Any:
    """Loads training data from the Hub, a folder (data files, or what `save_to_disk` wrote), or a file.

    Args:
        name: Hub id or path.
        config: Configuration of a data set on the Hub.
        streaming: Whether to read while training, without loading everything first.

    Returns:
        The data set's splits; those of a file are `{"train": ...}`.

    Raises:
        InvalidArgumentError: If the file is of an unknown type.
    """
    path = Path(name)
    if path.is_file():
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if suffix not in _BUILDERS:
            raise InvalidArgumentError(
                f"Expected a data file that ends in one of {', '.join(_BUILDERS)} (or .gz after it), but got "
                f"{path.name!r}. Convert it, or name a folder or a Hub id."
            )
        return load_dataset(_BUILDERS[suffix], data_files={"train": name}, streaming=streaming)
    if (path / "dataset_dict.json").is_file():
        return load_from_disk(name)
    return load_dataset(name, name=config, streaming=streaming)


def _data(script: ScriptArguments, mixture: DatasetMixtureConfig) -> tuple[Any, str | None]:
    """The data set's splits, and its name if it has one."""
    if not mixture.datasets:
        name = str(script.dataset_name)
        return load_pairs(name, script.dataset_config, streaming=script.dataset_streaming), name
    if script.dataset_name:
        logger.warning("Of datasets and dataset_name, the first is used, and %r is not read.", script.dataset_name)
    # With data_files, the path names a file format.
    paths = [dataset.path for dataset in mixture.datasets if not dataset.data_files]
    return get_dataset(mixture), paths[0] if len(paths) == len(mixture.datasets) == 1 else None


def _given(value: str | None, flag: str) -> str:
    if not value:
        raise InvalidArgumentError(f"Expected {flag}, but it was not given. Pass a Hub id or a local path.")
    return value


def _split(data: Any, split: str, name: str | None) -> Any:
    if split not in data:
        raise InvalidArgumentError(
            f"Expected {'the mixture' if name is None else repr(name)} to have the split {split!r}, but it has "
            f"{', '.join(map(repr, data))}. Name one with --dataset_train_split or --dataset_test_split."
        )
    return data[split]


def _model_options(model: ModelConfig, args: PartialRewardConfig) -> dict[str, Any]:
    """Keyword arguments for loading the model; those given as `--model_init_kwargs` win."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {**options, **(args.model_init_kwargs or {})}
