"""TRL's reward trainer with a loss on every prefix."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import RewardConfig, RewardTrainer

from rgtg_logits._checkpoint import ADAPTER_FILE
from rgtg_logits.card import CardFacts, Evaluation, render_card
from rgtg_logits.errors import InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model import RewardModel, RewardModelConfig
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.data import (
    PERCENTS,
    PairCounts,
    cut_long,
    drop_empty,
    drop_identical,
    drop_long,
    pair_lengths,
    prefix_wins,
)
from rgtg_logits.train.losses import finished
from rgtg_logits.train.objectives import OBJECTIVES, Pairs, Reading, Weights

logger = logging.getLogger(__name__)

# What a card tells of the training arguments when they differ from the defaults: that which shapes the weights.
_HYPERPARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "max_length", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed",
)  # fmt: skip
_LORA = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
_PACKAGES = ("rgtg_logits", "trl", "transformers", "torch", "datasets", "peft")


class PartialRewardTrainer(RewardTrainer):
    """Trains a reward model on prefixes (PARGS, arXiv 2406.07780) or on finished answers, from preference pairs.

    It is TRL's `RewardTrainer`: the same arguments, data formats, adapters, callbacks, checkpoints and uploads. Rewards
    of all prefixes come from one forward per text. What differs:

    - the loss is that of `args.objective`, a mean over all comparisons of one optimiser step (gradient accumulation and
      several processes change nothing);
    - evaluation reports `eval_prefix_accuracy_10` … `_100` (see `prefix_accuracy`) and `eval_loss`, exact over the set;
    - texts over `args.max_length` are cut from the end when training on prefixes; TRL leaves such rows out, and so does
      this trainer in evaluation and for "full_bt", which need finished answers. Rows with an empty answer or two equal
      texts are left out. The counts are logged and kept in `pair_counts` (streamed data are not counted);
    - an adapter (`peft_config`) always gets the task type SEQ_CLS, because otherwise its head is neither trained nor
      saved;
    - checkpoints say what they are: `config.rgtg`, or `rgtg.json` beside an adapter, which has no config of the model;
    - the card holds measured facts only.

    Raises:
        InvalidArgumentError: If `args` is not a `PartialRewardConfig`, no pair can be used, or the tokenizer has no
            end-of-text token.
        RewardModelError: If the model has no scalar head that reads every token.

    Example:
        ```python
        trainer = PartialRewardTrainer("Qwen/Qwen3-0.6B", PartialRewardConfig("rm"), train_dataset=pairs)
        trainer.train()
        trainer.push_to_hub(dataset_name="org/pairs")
        ```
    """

    _tag_names = ("reward-model", "reward-guided-decoding", "rgtg-logits", "trl")
    _name = "Partial reward"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RewardConfig | None = None,
        *positional: Any,
        peft_config: PeftConfig | None = None,
        **options: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else str(model.config.name_or_path)
            args = PartialRewardConfig(f"{Path(name).name}-Reward")
        if not isinstance(args, PartialRewardConfig):
            raise InvalidArgumentError(
                f"Expected args to be a PartialRewardConfig, which names the objective, but got {type(args).__name__}. "
                "Build the arguments with rgtg_logits.train.PartialRewardConfig."
            )
        self.pair_counts: dict[str, PairCounts] = {}
        self._measured: list[Tensor] = []
        self._evaluations: dict[str, Evaluation] = {}
        super().__init__(model, args, *positional, peft_config=_with_head(peft_config), **options)
        reader = RewardModel(self.model)  # Checks that there is a scalar head, and finds it through adapters.
        self._head = reader.head
        self._inner = _inner_model(self.model)
        self._inner.config.rgtg = RewardModelConfig(objective=args.objective).to_dict()
        self._inner.config.architectures = [type(self._inner).__name__]
        if isinstance(self.model, PeftModel) and not any(p.requires_grad for p in self._head.parameters()):
            logger.warning(
                "The reward head is frozen: only the adapter will be trained. If the head is untrained too, build the "
                "adapter with task_type='SEQ_CLS'."
            )

    def _prepare_dataset(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: PartialRewardConfig, dataset_name: str
    ) -> Any:
        if processing_class.eos_token is None:
            raise InvalidArgumentError(
                "Expected a tokenizer with an end-of-text token, which closes a finished answer, but it has none. "
                "Set eos_token in the training arguments."
            )
        options = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        sizes = [_size(dataset)]
        if dataset.column_names is None or "chosen" in dataset.column_names:
            dataset = drop_empty(dataset, **options)
        sizes.append(_usable(dataset, dataset_name))
        # TRL would leave out every long row, and a copy of the arguments is the only way to ask it not to.
        unlimited = copy.copy(args)
        unlimited.max_length = None
        dataset = super()._prepare_dataset(dataset, processing_class, unlimited, dataset_name)
        cuts = args.objective == "partial_bt" and dataset_name == "train"
        if args.max_length is not None:
            shorten = cut_long if cuts else drop_long
            dataset = shorten(dataset, args.max_length, **options)
        sizes.append(_size(dataset))
        dataset = drop_identical(dataset, **options)
        sizes.append(_usable(dataset, dataset_name))
        if None not in sizes:
            cut = sum(dataset["cut"]) if "cut" in dataset.column_names else 0
            self._count([size or 0 for size in sizes], cut, dataset_name)
        return dataset

    def _count(self, sizes: list[int], cut: int, dataset_name: str) -> None:
        """Keeps and logs what became of the rows: `sizes` before, and after leaving out empty, long, identical ones."""
        rows, answered, short, kept = sizes
        counts = PairCounts(kept, cut, empty=rows - answered, identical=short - kept, too_long=answered - short)
        self.pair_counts[dataset_name] = counts
        log = logger.warning if counts.left_out or cut else logger.info
        log(
            "%s data: %d pairs kept (%d cut at max_length), %d left out: %d empty, %d identical, %d too long.",
            dataset_name, kept, cut, counts.left_out, counts.empty, counts.identical, counts.too_long,
        )  # fmt: skip

    @contextmanager
    def _head_outputs(self) -> Iterator[list[Tensor]]:
        """Collects what the head says of every token, because the model itself returns one reward per text."""
        outputs: list[Tensor] = []
        hook = self._head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            yield outputs
        finally:
            hook.remove()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the objective, from one forward; TRL's metrics are kept.

        In training it is the sum over this batch's comparisons divided by their number in the whole optimiser step.
        """
        lengths = pair_lengths(inputs["input_ids"], inputs["attention_mask"])
        rewards: Float[Tensor, "rows length"] = torch.empty(0)

        def forward(*, margin: Tensor | None = None, **tokens: Any) -> Any:
            nonlocal rewards
            with self._head_outputs() as seen:
                outputs = model(**tokens)
            rewards = _token_rewards(seen, tokens["input_ids"])
            # The model takes the last token that is not padding, which drops the end-of-text token where they are one.
            outputs.logits = finished(rewards, torch.cat([lengths.chosen, lengths.rejected]))[:, None]
            return outputs

        # TRL's loss of the finished answers is discarded: what is wanted are its metrics.
        _, outputs = super().compute_loss(forward, dict(inputs), return_outputs=True)
        chosen, rejected = rewards.chunk(2)
        weights = Weights(center=self.args.center_rewards_coefficient)
        terms = OBJECTIVES[self.args.objective].terms(Reading(rewards), Pairs(*lengths, inputs.get("margin")), weights)
        if not self.model.training:
            wins = prefix_wins(chosen.detach(), rejected.detach(), lengths)
            self._record(wins, terms.losses.detach().sum(1), terms.exists.sum(1))
        if self.model.training and num_items_in_batch is not None:
            # The trainer divides by the accumulation steps, and processes are averaged: both are undone in advance.
            share = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = terms.losses.sum() * share / num_items_in_batch
        else:
            loss = terms.losses.sum() / terms.exists.sum()
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Counts the comparisons of one optimiser step, over all its batches and processes."""
        count = torch.zeros((), dtype=torch.long, device=device)
        for batch in batch_samples:
            lengths = pair_lengths(batch["input_ids"], batch["attention_mask"])
            count += OBJECTIVES[self.args.objective].count(Pairs(*lengths)).sum().to(device)
        return self.accelerator.gather(count).sum()

    def _record(self, wins: Tensor, losses: Tensor, comparisons: Tensor) -> None:
        """Keeps one row per pair, without the copies that fill up the last batch of several processes."""
        rows = torch.cat([wins.double(), losses.double()[:, None], comparisons.double()[:, None]], dim=1)
        self._measured.append(self.accelerator.gather_for_metrics(rows).cpu())

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> EvalLoopOutput:
        """Evaluates as the trainer does, and adds metrics that are exact over the whole set."""
        self._measured = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        if self._measured:
            rows = torch.cat(self._measured)
            accuracy = dict(zip(PERCENTS, rows[:, : len(PERCENTS)].mean(0).tolist(), strict=True))
            loss = float(rows[:, -2].sum() / rows[:, -1].sum())
            output.metrics[f"{metric_key_prefix}_loss"] = loss
            output.metrics.update(
                {f"{metric_key_prefix}_prefix_accuracy_{cut}": value for cut, value in accuracy.items()}
            )
            self._evaluations[metric_key_prefix] = Evaluation(
                name=metric_key_prefix,
                pairs=len(rows),
                step=self.state.global_step,
                loss=loss,
                prefix_accuracy=accuracy,
            )
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            # Not in config.json: next to an adapter, transformers (5.23) takes that file for a whole model and does not
            # load the adapter's base.
            file = Path(output_dir if output_dir is not None else self.args.output_dir, ADAPTER_FILE)
            file.write_text(json.dumps(self._inner.config.rgtg, indent=2) + "\n", encoding="utf-8")

    def card_facts(
        self, model_name: str | None = None, dataset_name: str | None = None, *, license: str | None = None
    ) -> CardFacts:
        """Gathers what this training knows of its model: nothing here is a guess."""
        base = str(self._inner.config.name_or_path or "")
        tokenizer = self.processing_class
        counts = self.pair_counts.get("train")
        return CardFacts(
            model_id=self.hub_model_id or model_name or Path(self.args.output_dir).name,
            objective=self.args.objective,
            base_model=base if base and not Path(base).exists() else None,
            dataset=_dataset_label(dataset_name),
            dataset_on_hub=dataset_name is not None and not Path(dataset_name).exists(),
            train_pairs=counts.kept if counts else None,
            cut_pairs=counts.cut if counts else None,
            left_out_pairs=counts.left_out if counts else None,
            max_length=self.args.max_length,
            steps=self.state.global_step,
            evaluations=tuple(self._evaluations.values()),
            hyperparameters=self._hyperparameters(),
            versions={name: version(name) for name in _PACKAGES if name != "peft" or isinstance(self.model, PeftModel)},
            pad_is_eos=tokenizer.pad_token_id == tokenizer.eos_token_id,
            adapter=isinstance(self.model, PeftModel),
            license=license,
        )

    def _hyperparameters(self) -> dict[str, Any]:
        """Training arguments that differ from their defaults, and the shape of an adapter."""
        # Read from the fields, because building a second config resets the devices of this one (transformers 5.23).
        defaults = {field.name: field.default for field in fields(self.args)}
        values = {name: getattr(self.args, name) for name in _HYPERPARAMETERS if name in defaults}
        changed = {
            name: value
            for name, value in values.items()
            # Precision that is left to the device (None) is told only where it is not float32.
            if _plain(value) != _plain(defaults[name]) and (value or defaults[name] is not None)
        }
        if isinstance(self.model, PeftModel):
            adapter = self.model.active_peft_config
            changed |= {name: getattr(adapter, name) for name in _LORA if hasattr(adapter, name)}
        return {name: _plain(value) for name, value in changed.items()}

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        *,
        license: str | None = None,
    ) -> None:
        """Writes the card of the model to `output_dir/README.md`.

        Args:
            model_name: Its name; by default that of the output folder.
            dataset_name: Hub id of the pairs (a local path is cut down to its last part).
            tags: Tags besides those of this library.
            license: A licence identifier of the Hub, if known.
        """
        if not self.is_world_process_zero():
            return
        extra = [tags] if isinstance(tags, str) else list(tags or [])
        facts = self.card_facts(model_name, dataset_name, license=license)
        card = render_card(replace(facts, tags=tuple(sorted({*extra, *self._tag_names}))))
        Path(self.args.output_dir, "README.md").write_text(card, encoding="utf-8")


def _with_head(config: PeftConfig | None) -> PeftConfig | None:
    """The adapter's configuration with a trained head; the user's own object stays as it is."""
    if config is None or str(getattr(config.task_type, "value", config.task_type)) == "SEQ_CLS":
        return config
    if config.task_type is not None:
        logger.info("The adapter's task type %s becomes SEQ_CLS, so that the reward head is trained.", config.task_type)
    config = copy.copy(config)
    config.task_type = "SEQ_CLS"
    return config


def _inner_model(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _token_rewards(seen: list[Tensor], input_ids: Tensor) -> Float[Tensor, "rows length"]:
    """The reward of every prefix, in float32 or better, because differences of rewards are small."""
    expected = (*input_ids.shape, 1)
    if len(seen) != 1 or seen[0].shape != expected:
        raise RewardModelError(
            f"Expected the model to apply its reward head once, to every token (shape {expected}), but it was applied "
            f"{len(seen)} times, to shapes {[tuple(output.shape) for output in seen]}. Use an architecture whose "
            "…ForSequenceClassification head reads every token."
        )
    rewards = seen[0].squeeze(-1)
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


def _size(dataset: Any) -> int | None:
    return len(dataset) if isinstance(dataset, Dataset) else None


def _usable(dataset: Any, name: str) -> int | None:
    size = _size(dataset)
    if size == 0:
        raise InvalidArgumentError(
            f"Expected the {name} data to hold pairs of two different, non-empty answers within max_length tokens, but "
            "none is left. Check the columns 'chosen' and 'rejected', or raise max_length."
        )
    return size


def _dataset_label(name: str | None) -> str | None:
    """A Hub id as it is; of a local path only the last part, because the rest says nothing to a reader."""
    return None if name is None else Path(name).name if Path(name).exists() else name


def _plain(value: Any) -> Any:
    """Enums and sets as text, so that a card reads the same on every run."""
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return getattr(value, "value", value)
