"""TRL's reward trainer with the objectives of reward models that score prefixes."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalLoopOutput
from trl import RewardConfig, RewardTrainer

from rgtg_logits.data_files import nothing_written_beside
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.hub import RGTG_FILE
from rgtg_logits.prefix_accuracy import pair_lengths
from rgtg_logits.reward_model import unwrap_adapter
from rgtg_logits.train.checkpoints import AtomicCheckpointMixin
from rgtg_logits.train.collators import DataCollatorForRewardLabels
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.dataset_columns import DataChoice, check_datasets, check_stream
from rgtg_logits.train.finite import FiniteGradients, FiniteTrainingMixin
from rgtg_logits.train.length_limit import LengthLimit
from rgtg_logits.train.losses import last_rewards
from rgtg_logits.train.metrics import EvaluationMetrics, aggregate, correlation, row_statistics
from rgtg_logits.train.model_card import EvaluationRecord, ModelCardMixin
from rgtg_logits.train.models import (
    adapter_config,
    adapter_errors,
    check_model,
    load_model,
    load_tokenizer,
    output_layer_name,
    scale_initial_logits,
    trl_checks_disabled,
)
from rgtg_logits.train.objectives import LOSSES, LabelBatch, LossTerms, PairBatch, PrefixRewards
from rgtg_logits.train.packing import SharedPromptReader
from rgtg_logits.train.preprocessing import DatasetPreparation, RowCounts, add_lengths
from rgtg_logits.train.push import HubPushMixin
from rgtg_logits.train.reward_reader import RewardReader

logger = logging.getLogger(__name__)


class PartialRewardTrainer(HubPushMixin, ModelCardMixin, FiniteTrainingMixin, AtomicCheckpointMixin, RewardTrainer):
    """Trains a reward model on prefixes or on finished answers, from preference pairs or from answers with a reward.

    It is TRL's `RewardTrainer`: the same arguments, data formats, adapters, callbacks, checkpoints and uploads. Rewards
    of all prefixes come from one forward per text. What differs:

    - the loss is that of `args.objective`, a mean over all its terms in one optimiser step (gradient accumulation and
      several processes change nothing), and `args.kind` says what is trained: a scalar head or a language model;
    - objectives that learn from rewards take rows with `completion` or `text` (as texts, or messages), `reward` or
      `label` (a number), and perhaps `prompt`; or `input_ids`, `start` and `reward`;
    - evaluation reports `eval_loss`, exact over the set; for pairs `eval_prefix_accuracy_10` … `_100` (see
      `prefix_accuracy`), for rewards `eval_prefix_correlation_10` … `_100`: Pearson's correlation, over the set, of the
      reward of answers cut at that percentage with the data's reward of the finished answer (0 where one is constant).
      Mean and standard deviation of the rewards of all prefixes, `eval_reward_mean` and `eval_reward_std`, are saved in
      the checkpoint until the weights change, and with them a guidance strength to begin with
      (`RewardModelConfig.suggested_beta`);
    - texts over `args.max_length` are cut when training on prefixes, see `LengthLimit`; TRL leaves such rows out, and
      so does this trainer in evaluation and for objectives on finished answers. Rows that cannot be used are left out.
      The counts are logged and kept in `row_counts` (streamed data are not counted);
    - an adapter (`peft_config`) always gets the task type that the kind needs: SEQ_CLS, because otherwise the head is
      neither trained nor saved, or CAUSAL_LM;
    - a model that is given by name may be of any architecture with a causal language model. For the kind "vocabulary",
      a language model's logits are scaled down to make the first rewards small, see `scale_initial_logits`;
    - checkpoints and models are complete on disk or absent, whenever the process is killed, and
      `train(resume_from_checkpoint=True)` starts from the beginning if there is no checkpoint yet;
    - checkpoints hold their kind, objective and unit in `config.rgtg`, or in `rgtg.json` beside an adapter, which has
      no config of the model;
    - a loss, gradient or weight that is not finite stops the training; such weights are never saved;
    - the card holds measured facts only.

    Save the model before you evaluate it, so that no failure of an evaluation can lose it: `train()`, `save_model()`,
    `evaluate()`, and then `save_config()`, which adds the distribution of rewards that was measured.

    Raises:
        InvalidArgumentError: If `args` is not a `PartialRewardConfig`, the data do not fit the objective or no row can
            be used, the model does not fit the kind, or the tokenizer has no end-of-text token.
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
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *positional: Any,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        **options: Any,
    ) -> None:
        args = _training_arguments(args, model)
        self._objective = args.objective_definition
        self._loss = LOSSES[args.objective]
        self.row_counts: dict[str, RowCounts] = {}
        self.evaluations: dict[str, EvaluationRecord] = {}
        self._training_data_prepared = False
        self._eval_statistics: list[Tensor] = []
        # Before anything is loaded.
        check_datasets(args.objective_definition, train_dataset, eval_dataset, _data_choice(args))
        check_stream(train_dataset, args)
        loaded_here = isinstance(model, str)
        if isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model, args)
            set_seed(args.seed)  # A new head is random.
            model = load_model(model, args, quantization_config)
        elif quantization_config is not None:
            logger.warning("quantization_config is not used, because the model is loaded already.")
        kind = args.reward_model.kind
        check_model(model, kind, args.objective, is_adapted=peft_config is not None or isinstance(model, PeftModel))
        scaled = kind == "vocabulary" and scale_initial_logits(model)
        peft_config = adapter_config(peft_config, kind, output_layer_name(model) if scaled else None)
        with trl_checks_disabled(model, args, loaded_here=loaded_here), adapter_errors(model, peft_config):
            super().__init__(
                model, args, data_collator, train_dataset, eval_dataset, processing_class, *positional,
                peft_config=peft_config, **options,
            )  # fmt: skip
        if data_collator is None and self._objective.data == "labels":
            self.data_collator = DataCollatorForRewardLabels(
                self.processing_class.pad_token_id, args.pad_to_multiple_of
            )
        self.add_callback(FiniteGradients(self))
        inner: Any = unwrap_adapter(self.model)
        self._inner = inner
        self._inner.config.architectures = [type(self._inner).__name__]
        self._write_config(None)
        self._reader = self._make_reader(args)
        if self._reader.head is not None:
            self._set_head_precision(self._reader.head, half=bool(args.bf16 or args.fp16))
            self._warn_of_frozen_head(self._reader.head)

    def _make_reader(self, args: PartialRewardConfig) -> RewardReader:
        shared_prompts = None
        if args.shared_prompt:
            shared_prompts = SharedPromptReader(self._inner, half=bool(args.bf16 or args.fp16))
        return RewardReader(
            self.model,
            args.reward_model.kind,
            len(self.processing_class),
            shared_prompts,
            max_next=self._objective.needs_best,
            sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled,
        )

    def _set_head_precision(self, head: nn.Module, *, half: bool) -> None:
        if getattr(self._inner, "is_quantized", False) and not self.is_fsdp_enabled:
            # TRL (1.16) casts the layers on top of quantised weights to bfloat16. In it a head hardly moves, because
            # its updates are smaller than the spacing of its numbers, and without mixed precision its type would not
            # match that of the hidden states.
            head.to(torch.float32 if half else self._inner.dtype)

    def _warn_of_frozen_head(self, head: nn.Module) -> None:
        if isinstance(self.model, PeftModel) and not any(p.requires_grad for p in head.parameters()):
            logger.warning(
                "The reward head is frozen: only the adapter will be trained. If the head is untrained too, build the "
                "adapter with task_type='SEQ_CLS'."
            )

    def _prepare_dataset(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: PartialRewardConfig, dataset_name: str
    ) -> Any:
        with nothing_written_beside(dataset):
            return self._prepared(dataset, processing_class, args, dataset_name)

    def _prepared(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: PartialRewardConfig, dataset_name: str
    ) -> Any:
        if processing_class.eos_token is None:
            raise InvalidArgumentError(
                "Expected a tokenizer with an end-of-text token, which closes a finished answer, but it has none. "
                "Set eos_token in the training arguments."
            )
        # Evaluation sets may have any name, even "train", but are prepared after the training data.
        training = not self._training_data_prepared
        self._training_data_prepared = True
        limit = LengthLimit(args.max_length, training and self._objective.every_prefix, processing_class.bos_token_id)
        preparation = DatasetPreparation(
            self._objective, dataset_name, limit, args.dataset_num_proc, _data_choice(args)
        )
        if self._objective.data == "labels":
            dataset = preparation.labels(dataset, processing_class)
        else:
            # TRL leaves out long rows unless its arguments have no limit, so it gets a copy of them without one.
            unlimited = copy.copy(args)
            unlimited.max_length = None
            tokenize = RewardTrainer._prepare_dataset
            dataset = preparation.pairs(
                dataset, processing_class, lambda rows: tokenize(self, rows, processing_class, unlimited, dataset_name)
            )
        counts = preparation.counts(dataset)
        # For length-grouped batching the trainer (transformers 5.23) measures the column "input_ids", which pairs lack.
        # transformers 4.57 has no such argument.
        grouped = getattr(args, "train_sampling_strategy", "random") in ("group_by_length", "batch_rebalance")
        if grouped and self._objective.data == "pairs" and isinstance(dataset, Dataset):
            dataset = add_lengths(dataset, args.length_column_name, args.dataset_num_proc)
        if counts is None:
            logger.info(
                "%s data: streamed, so rows that cannot be used will be left out without being counted.", dataset_name
            )
            return dataset
        self.row_counts[dataset_name if training or dataset_name != "train" else "eval_train"] = counts
        log = logger.warning if counts.left_out or counts.cut else logger.info
        log("%s data: %s.", dataset_name, counts)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._objective.data == "labels":
            self._signature_columns = ["input_ids", "start", "reward"]

    def _batch_data(self, inputs: dict[str, Any]) -> PairBatch | LabelBatch:
        """The data of a batch besides its tokens."""
        attention_mask = inputs["attention_mask"]
        batch: PairBatch | LabelBatch
        if self._objective.data == "pairs":
            lengths = pair_lengths(inputs["input_ids"], attention_mask)
            batch = PairBatch(*lengths, margin=inputs.get("margin"))
        else:
            batch = LabelBatch(attention_mask.sum(1), inputs["start"], inputs["reward"])
        if self.args.kind == "vocabulary":
            # The reward of a token is the logit before it, and before the first token of a text there is none.
            batch = batch._replace(start=batch.start.clamp(min=1))
        return batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the objective, from one forward; TRL's metrics are kept.

        In training it is the sum over this batch's terms divided by their number in the whole optimiser step.
        """
        batch = self._batch_data(inputs)
        prefixes, outputs = self._read(model, inputs, batch)
        settings = self.args.loss_settings
        if not self.model.training:
            # Evaluated on the rewards in the data, so that runs with different td_lambda can be compared.
            settings = replace(settings, td_lambda=1.0)
        terms = self._loss.terms(prefixes, batch, settings)
        if self.model.training:
            self._write_config(None)  # The weights are about to change.
        else:
            # Without the copies of rows that fill up the last batch of several processes.
            statistics = self.accelerator.gather_for_metrics(row_statistics(prefixes, batch, terms))
            self._eval_statistics.append(statistics.cpu())
        loss = self._reduce(terms, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _read(
        self, model: nn.Module, inputs: dict[str, Any], batch: PairBatch | LabelBatch
    ) -> tuple[PrefixRewards, Any]:
        """Runs the model once, and logs the metrics of TRL.

        Returns:
            The rewards of all prefixes, and the model's output with the rewards of the finished answers as its logits.
        """
        prefixes = PrefixRewards(torch.empty(0, 0))

        def forward(*, margin: Tensor | None = None, **tokens: Any) -> Any:
            nonlocal prefixes
            prefixes, outputs = self._reader.read(model, start=batch.spans.start, **tokens)
            # A classifier itself pools the last token that is not padding: not the end of text, if that pads as well.
            outputs.logits = last_rewards(prefixes.rewards, batch.spans.end)[:, None]
            return outputs

        if isinstance(batch, PairBatch):
            # Called for its metrics: TRL's loss of the finished answers is discarded.
            _, outputs = super().compute_loss(forward, dict(inputs), return_outputs=True)
        else:
            outputs = forward(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            self._log_label_metrics(outputs.logits, batch, inputs["attention_mask"])
        return prefixes, outputs

    def _reduce(self, terms: LossTerms, num_items_in_batch: Tensor | int | None) -> Float[Tensor, ""]:
        """The mean of the terms over this batch, or this batch's part of the mean over the optimiser step."""
        if not self.model.training or num_items_in_batch is None:
            return terms.losses.sum() / terms.mask.sum().clamp(min=1)
        # The trainer divides by the accumulation steps, and processes are averaged: both are undone in advance.
        scale = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return terms.losses.sum() * scale / num_items_in_batch

    @torch.no_grad()
    def _log_label_metrics(self, rewards: Float[Tensor, "rows 1"], batch: LabelBatch, mask: Tensor) -> None:
        """Logs the metrics that TRL logs for pairs, with the correlation to the data's rewards in place of accuracy."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            self._total_train_tokens += self.accelerator.gather_for_metrics(mask.sum()).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]
        rewards = self.accelerator.gather(rewards)[:, 0].float()
        labels = self.accelerator.gather(batch.rewards)
        metrics["min_reward"].append(rewards.min().item())
        metrics["mean_reward"].append(rewards.mean().item())
        metrics["max_reward"].append(rewards.max().item())
        if len(labels) > 1:
            metrics["correlation"].append(correlation(rewards, labels))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Counts the terms of the loss of one optimiser step, over all its batches and processes."""
        count = torch.zeros((), dtype=torch.long, device=device)
        for inputs in batch_samples:
            count += self._loss.count(self._batch_data(inputs)).sum().to(device)
        return self.accelerator.gather(count).sum()

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> EvalLoopOutput:
        """Evaluates as the trainer does, and adds metrics that are exact over the whole set."""
        self._eval_statistics = []
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **options)
        if self._eval_statistics:
            pairs = self._objective.data == "pairs"
            metrics = aggregate(torch.cat(self._eval_statistics), pairs=pairs)
            name = f"{metric_key_prefix}_prefix_{'accuracy' if pairs else 'correlation'}"
            output.metrics.update({f"{name}_{percent}": figure for percent, figure in metrics.by_percent.items()})
            output.metrics[f"{metric_key_prefix}_loss"] = metrics.loss
            output.metrics[f"{metric_key_prefix}_reward_mean"] = metrics.reward_mean
            output.metrics[f"{metric_key_prefix}_reward_std"] = metrics.reward_std
            self._write_config(metrics)
            # A set that is evaluated again goes to the end, because the card describes the last evaluation.
            self.evaluations.pop(metric_key_prefix, None)
            record = EvaluationRecord(metric_key_prefix, metrics, self.state.global_step, dataloader.dataset)
            self.evaluations[metric_key_prefix] = record
        return output

    def _write_config(self, metrics: EvaluationMetrics | None) -> None:
        """Sets the model's `config.rgtg`, with the metrics of its present weights if they were evaluated."""
        config = self.args.reward_model
        if metrics is not None:
            config = replace(config, reward_mean=metrics.reward_mean, reward_std=metrics.reward_std)
        self._inner.config.rgtg = config.to_dict()

    def save_config(self) -> None:
        """Writes the config of the model that was saved to `output_dir` again, with what was evaluated since."""
        if not self.args.should_save:
            return
        # Beside an adapter there is no config of the model; see `_save`.
        is_adapter = isinstance(self.model, PeftModel)
        file = Path(self.args.output_dir, RGTG_FILE if is_adapter else "config.json")
        rgtg = self._inner.config.rgtg
        content = rgtg if is_adapter else {**json.loads(file.read_text(encoding="utf-8")), "rgtg": rgtg}
        write_atomically(file, json.dumps(content, indent=2) + "\n")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._write_config(None)  # The last evaluation was of other weights.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            # Not in config.json: next to an adapter, transformers (5.23) takes that file for the config of a whole
            # model and does not load the adapter's base.
            file = Path(output_dir if output_dir is not None else self.args.output_dir, RGTG_FILE)
            file.write_text(json.dumps(self._inner.config.rgtg, indent=2) + "\n", encoding="utf-8")


def _training_arguments(args: RewardConfig | None, model: str | PreTrainedModel | PeftModel) -> PartialRewardConfig:
    """The given arguments, or defaults with an output folder that is named after the model."""
    if args is None:
        name = model if isinstance(model, str) else str(model.config.name_or_path)
        return PartialRewardConfig(f"{Path(name).name}-Reward")
    if not isinstance(args, PartialRewardConfig):
        raise InvalidArgumentError(
            f"Expected args to be a PartialRewardConfig, which names the objective, but got {type(args).__name__}. "
            "Build the arguments with rgtg_logits.train.PartialRewardConfig."
        )
    return args


def _data_choice(args: PartialRewardConfig) -> DataChoice:
    return DataChoice(args.dataset_format, args.columns)
