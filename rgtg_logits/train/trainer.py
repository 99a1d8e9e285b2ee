"""TRL's reward trainer with the objectives of reward models of prefixes."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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

from rgtg_logits.card import CardFacts, write_card
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.hub import RGTG_FILE
from rgtg_logits.train.checkpoints import AtomicCheckpointMixin
from rgtg_logits.train.config import PartialRewardConfig
from rgtg_logits.train.data import PairCounts, pair_lengths
from rgtg_logits.train.evaluation import Measured, correlation, measured, row_figures
from rgtg_logits.train.facts import Measurement, card_facts
from rgtg_logits.train.labelled import LabelledCollator, answer_tokens
from rgtg_logits.train.losses import finished
from rgtg_logits.train.models import (
    adapter_config,
    check_model,
    inner_model,
    load_model,
    load_tokenizer,
    output_layer_name,
    scale_initial_logits,
    taken_as_loaded,
)
from rgtg_logits.train.objectives import LOSSES, Labelled, Pairs, Reading
from rgtg_logits.train.packing import SharedPrompts
from rgtg_logits.train.push import HubPushMixin
from rgtg_logits.train.reading import RewardReader
from rgtg_logits.train.rows import Limit, Preparation, add_lengths, check_datasets

logger = logging.getLogger(__name__)


class PartialRewardTrainer(HubPushMixin, AtomicCheckpointMixin, RewardTrainer):
    """Trains a reward model on prefixes or on finished answers, from preference pairs or from answers with a reward.

    It is TRL's `RewardTrainer`: the same arguments, data formats, adapters, callbacks, checkpoints and uploads. Rewards
    of all prefixes come from one forward per text. What differs:

    - the loss is that of `args.objective`, a mean over all its parts in one optimiser step (gradient accumulation and
      several processes change nothing), and `args.kind` says what is trained: a scalar head or a language model;
    - objectives that learn from rewards take rows with `completion` or `text` (as texts, or messages), `reward` or
      `label` (a number), and perhaps `prompt`; or `input_ids`, `start` and `reward`;
    - evaluation reports `eval_loss`, exact over the set; for pairs `eval_prefix_accuracy_10` … `_100` (see
      `prefix_accuracy`), for rewards `eval_prefix_correlation_10` … `_100`: Pearson's correlation, over the set, of the
      reward of answers cut at that percentage with that of the finished answer (0 where one of them does not vary).
      Mean and standard deviation of the rewards of all prefixes, `eval_reward_mean` and `eval_reward_std`, go into the
      checkpoint too, as long as the model stays as it was measured; so does what to try as guidance strength
      (`RewardModelConfig.suggested_beta`);
    - texts over `args.max_length` are cut when training on prefixes, see `Limit`; TRL leaves such rows out, and so does
      this trainer in evaluation and for objectives on finished answers. Rows that cannot be used are left out. The
      counts are logged and kept in `pair_counts` (streamed data are not counted);
    - an adapter (`peft_config`) always gets the task type that the kind needs: SEQ_CLS, because otherwise the head is
      neither trained nor saved, or CAUSAL_LM;
    - a model that is given by name may be of any architecture with a causal language model. For the kind "vocabulary",
      a language model's logits are scaled to start from small rewards, see `scale_initial_logits`;
    - checkpoints and models are on disk whole or not at all, whenever the process is killed, and
      `train(resume_from_checkpoint=True)` starts from the beginning where there is no checkpoint yet;
    - checkpoints say what they are: `config.rgtg`, or `rgtg.json` beside an adapter, which has no config of the model;
    - the card holds measured facts only.

    Raises:
        InvalidArgumentError: If `args` is not a `PartialRewardConfig`, the data are not those of the objective or none
            can be used, the model is not of the kind, or the tokenizer has no end-of-text token.
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
        if args is None:
            name = model if isinstance(model, str) else str(model.config.name_or_path)
            args = PartialRewardConfig(f"{Path(name).name}-Reward")
        if not isinstance(args, PartialRewardConfig):
            raise InvalidArgumentError(
                f"Expected args to be a PartialRewardConfig, which names the objective, but got {type(args).__name__}. "
                "Build the arguments with rgtg_logits.train.PartialRewardConfig."
            )
        self._what = args.what
        self._loss = LOSSES[args.objective]
        self._prepared = False
        self.pair_counts: dict[str, PairCounts] = {}
        self._figures: list[Tensor] = []
        self._measurements: dict[str, Measurement] = {}
        check_datasets(args.what, train_dataset, eval_dataset)  # Before anything is loaded.
        loaded = isinstance(model, str)
        if isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model, args)
            set_seed(args.seed)  # A new head is random.
            model = load_model(model, args, quantization_config)
        elif quantization_config is not None:
            logger.warning("quantization_config is not used, because the model is loaded already.")
        kind = args.reward_model.kind
        check_model(model, kind, args.objective)
        scaled = kind == "vocabulary" and scale_initial_logits(model)
        peft_config = adapter_config(peft_config, kind, output_layer_name(model) if scaled else None)
        with taken_as_loaded(model, args, here=loaded):
            super().__init__(
                model, args, data_collator, train_dataset, eval_dataset, processing_class, *positional,
                peft_config=peft_config, **options,
            )  # fmt: skip
        if data_collator is None and self._what.data == "labels":
            self.data_collator = LabelledCollator(self.processing_class.pad_token_id, args.pad_to_multiple_of)
        self._inner = inner_model(self.model)
        half = bool(args.bf16 or args.fp16)
        shared = SharedPrompts(self._inner, half=half) if args.shared_prompt else None
        self._reader = RewardReader(
            self.model, kind, len(self.processing_class), shared, best=self._what.needs_best,
            sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled,
        )  # fmt: skip
        self._inner.config.architectures = [type(self._inner).__name__]
        self._describe(None)
        if self._reader.head is not None:
            self._prepare_head(self._reader.head, half=half)

    def _prepare_head(self, head: nn.Module, *, half: bool) -> None:
        if getattr(self._inner, "is_quantized", False) and not self.is_fsdp_enabled:
            # TRL (1.16) trains in bfloat16 what is on top of quantised weights: in it a head hardly moves, because its
            # steps are smaller than what it can tell apart, and without mixed precision it does not fit the states.
            head.to(torch.float32 if half else self._inner.dtype)
        if isinstance(self.model, PeftModel) and not any(p.requires_grad for p in head.parameters()):
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
        # Evaluation sets may bear any name, and come after the data that are trained on.
        training = not self._prepared
        self._prepared = True
        limit = Limit(args.max_length, training and self._what.every_prefix, processing_class.bos_token_id)
        preparation = Preparation(self._what, dataset_name, limit, args.dataset_num_proc)
        if self._what.data == "labels":
            dataset = preparation.labelled(dataset, partial(answer_tokens, tokenizer=processing_class))
        else:
            # TRL would leave out every long row, and a copy of the arguments is the only way to ask it not to.
            unlimited = copy.copy(args)
            unlimited.max_length = None
            tokenize = super()._prepare_dataset
            dataset = preparation.pairs(
                dataset, processing_class, lambda rows: tokenize(rows, processing_class, unlimited, dataset_name)
            )
        counts = preparation.counts(dataset)
        # The trainer (transformers 5.23) would look for the lengths of a column "input_ids", which pairs do not have.
        # transformers 4.57 has no such argument.
        grouped = getattr(args, "train_sampling_strategy", "random") in ("group_by_length", "batch_rebalance")
        if grouped and self._what.data == "pairs" and isinstance(dataset, Dataset):
            dataset = add_lengths(dataset, args.length_column_name, args.dataset_num_proc)
        if counts is None:
            logger.info(
                "%s data: streamed, so rows that cannot be used will be left out without being counted.", dataset_name
            )
            return dataset
        self.pair_counts[dataset_name if training or dataset_name != "train" else "eval_train"] = counts
        log = logger.warning if counts.left_out or counts.cut else logger.info
        log("%s data: %s.", dataset_name, counts)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._what.data == "labels":
            self._signature_columns = ["input_ids", "start", "reward"]

    def _known(self, inputs: dict[str, Any]) -> Pairs | Labelled:
        """What is known of a batch besides its tokens."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        known: Pairs | Labelled
        if self._what.data == "pairs":
            known = Pairs(*pair_lengths(ids, mask), inputs.get("margin"))
        else:
            known = Labelled(mask.sum(1), inputs["start"], inputs["reward"])
        # Before the first token of a text there are no logits, which would be its reward.
        return known._replace(start=known.start.clamp(min=1)) if self.args.kind == "vocabulary" else known

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the objective, from one forward; TRL's metrics are kept.

        In training it is the sum over this batch's parts divided by their number in the whole optimiser step.
        """
        known = self._known(inputs)
        lengths, start = known.texts
        reading = Reading(torch.empty(0, 0))

        def forward(*, margin: Tensor | None = None, **tokens: Any) -> Any:
            nonlocal reading
            reading, outputs = self._reader.read(model, start=start, **tokens)
            # A classifier takes the last token that is not padding, which drops the end of text where they are one.
            outputs.logits = finished(reading.rewards, lengths)[:, None]
            return outputs

        if isinstance(known, Pairs):
            # TRL's loss of the finished answers is discarded: what is wanted are its metrics.
            _, outputs = super().compute_loss(forward, dict(inputs), return_outputs=True)
        else:
            tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            outputs = forward(**tokens, use_cache=False)
            self._keep_metrics(outputs.logits, known, tokens["attention_mask"])
        # Evaluated on the data alone, whatever was trained on, so that losses can be compared.
        weights = self.args.weights if self.model.training else replace(self.args.weights, td_lambda=1.0)
        terms = self._loss.terms(reading, known, weights)
        if self.model.training:
            self._describe(None)  # What was measured before is no longer true.
        else:
            # Without the copies that fill up the last batch of several processes.
            figures = self.accelerator.gather_for_metrics(row_figures(reading, known, terms))
            self._figures.append(figures.cpu())
        if self.model.training and num_items_in_batch is not None:
            # The trainer divides by the accumulation steps, and processes are averaged: both are undone in advance.
            share = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = terms.losses.sum() * share / num_items_in_batch
        else:
            loss = terms.losses.sum() / terms.exists.sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _keep_metrics(self, rewards: Float[Tensor, "rows 1"], known: Labelled, mask: Tensor) -> None:
        """Keeps for the log what TRL keeps of pairs; the correlation with the data's rewards stands for accuracy."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            self._total_train_tokens += self.accelerator.gather_for_metrics(mask.sum()).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]
        rewards, labels = self.accelerator.gather(rewards)[:, 0].float(), self.accelerator.gather(known.rewards)
        for name in ("min", "mean", "max"):
            metrics[f"{name}_reward"].append(getattr(rewards, name)().item())
        if len(labels) > 1:
            metrics["correlation"].append(correlation(rewards, labels))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Counts the parts of the loss of one optimiser step, over all its batches and processes."""
        count = torch.zeros((), dtype=torch.long, device=device)
        for batch in batch_samples:
            count += self._loss.count(self._known(batch)).sum().to(device)
        return self.accelerator.gather(count).sum()

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> EvalLoopOutput:
        """Evaluates as the trainer does, and adds metrics that are exact over the whole set."""
        self._figures = []
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **options)
        if self._figures:
            pairs = self._what.data == "pairs"
            found = measured(torch.cat(self._figures), pairs=pairs)
            name = f"{metric_key_prefix}_prefix_{'accuracy' if pairs else 'correlation'}"
            output.metrics.update({f"{name}_{cut}": value for cut, value in found.by_percent.items()})
            output.metrics[f"{metric_key_prefix}_loss"] = found.loss
            output.metrics[f"{metric_key_prefix}_reward_mean"] = found.reward_mean
            output.metrics[f"{metric_key_prefix}_reward_std"] = found.reward_std
            self._describe(found)
            # The last one comes last, whatever its name was before.
            self._measurements.pop(metric_key_prefix, None)
            step = self.state.global_step
            self._measurements[metric_key_prefix] = Measurement(metric_key_prefix, found, step, dataloader.dataset)
        return output

    def _describe(self, found: Measured | None) -> None:
        """Writes into the model's configuration what it is, and what was measured of it as it is now."""
        described = self.args.reward_model
        if found is not None:
            described = replace(described, reward_mean=found.reward_mean, reward_std=found.reward_std)
        self._inner.config.rgtg = described.to_dict()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._describe(None)  # The last evaluation was of other weights.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            # Not in config.json: next to an adapter, transformers (5.23) takes that file for a whole model and does not
            # load the adapter's base.
            file = Path(output_dir if output_dir is not None else self.args.output_dir, RGTG_FILE)
            file.write_text(json.dumps(self._inner.config.rgtg, indent=2) + "\n", encoding="utf-8")

    def card_facts(
        self, model_name: str | None = None, dataset_name: str | None = None, *, license: str | None = None
    ) -> CardFacts:
        """Gathers what this training knows of its model; see `facts.card_facts`."""
        return card_facts(
            self,
            counts=self.pair_counts.get("train"),
            measurements=list(self._measurements.values()),
            model_name=model_name,
            dataset_name=dataset_name,
            license=license,
            merged=self._merging,
        )

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        *,
        license: str | None = None,
    ) -> None:
        """Writes the card of the model to `output_dir/README.md`, and beside it its facts and pictures.

        It can be made again from `facts.json`, with more of them, by `rgtg card`.

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
        facts = replace(facts, tags=tuple(sorted({*extra, *self._tag_names})))
        write_card(Path(self.args.output_dir), facts)
