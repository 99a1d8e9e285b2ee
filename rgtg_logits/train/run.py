"""`rgtg train`: the arguments of `trl reward`, a training, a checkpoint with its card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers
from datasets import load_dataset, load_from_disk
from packaging.version import Version
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.trainer import PartialRewardTrainer

logger = logging.getLogger(__name__)

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def train(argv: list[str] | None = None) -> None:
    """Trains a reward model as told by command-line arguments, evaluates and saves it.

    The arguments are those of `trl reward` and `--objective`; `--config file.yaml` holds any of them. `--dataset_name`
    is a Hub id, a folder, or a file (json, jsonl, csv, each also as .gz, or parquet). Where the data have the split
    `--dataset_test_split` ("test" by default), the model is evaluated on it after training. The folder `--output_dir`
    gets the model, its tokenizer and its card, and `--push_to_hub` uploads them.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Raises:
        InvalidArgumentError: If there is no model, no data set, or no such split or file type.
    """
    parser = TrlParser((ScriptArguments, PartialRewardConfig, ModelConfig), prog="rgtg train")
    script, args, model = parser.parse_args_and_config(argv)
    name = _given(script.dataset_name, "--dataset_name")
    pairs = load_pairs(name, script.dataset_config, streaming=script.dataset_streaming)
    test = script.dataset_test_split if script.dataset_test_split in pairs or args.eval_strategy != "no" else None
    args.model_init_kwargs = _model_options(model, args)
    trainer = PartialRewardTrainer(
        _given(model.model_name_or_path, "--model_name_or_path"),
        args,
        train_dataset=_split(pairs, script.dataset_train_split, name),
        eval_dataset=_split(pairs, test, name) if test is not None else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if test is not None:
        trainer.evaluate()
    trainer.save_model(args.output_dir)
    trainer.create_model_card(dataset_name=name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=name)
    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()


def load_pairs(name: str, config: str | None = None, *, streaming: bool = False) -> Any:
    """Loads preference pairs from the Hub, a folder (data files, or what `save_to_disk` wrote), or a file.

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


def _given(value: str | None, flag: str) -> str:
    if not value:
        raise InvalidArgumentError(f"Expected {flag}, but it was not given. Pass a Hub id or a local path.")
    return value


def _split(pairs: Any, split: str, name: str) -> Any:
    if split not in pairs:
        raise InvalidArgumentError(
            f"Expected {name!r} to have the split {split!r}, but it has {', '.join(map(repr, pairs))}. "
            "Name one with --dataset_train_split or --dataset_test_split."
        )
    return pairs[split]


def _model_options(model: ModelConfig, args: PartialRewardConfig) -> dict[str, Any]:
    """Keyword arguments for loading the model; those given as `--model_init_kwargs` win."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {**options, **(args.model_init_kwargs or {})}
