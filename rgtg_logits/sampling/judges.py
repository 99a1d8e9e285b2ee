"""Judges of finished answers: a reward model, a classifier, or a function written by the user."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.sampling.prompts import Prompt
from rgtg_logits.scorers import RewardFunction, check_causal, checked_rewards
from rgtg_logits.tokenization import encode_conversation, encode_finished

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]
"""Function from prompts and answers to rewards, which may not be finite; None for a text that is too long to read."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_reward(name: str, *, label_name: str | None = None, dtype: str = "auto", device: str = "cpu") -> Judge:
    """Loads a judge of answers.

    Args:
        name: One of

            - the Hub id or folder of a reward model, of any kind (`RewardModel`);
            - the Hub id or folder of a `…ForSequenceClassification` model: its output with one label, the log-odds of
              `label_name` with several. It reads prompt and answer as one text, encoded by its tokenizer;
            - `package.module:function`, a function `(prompts: list[str], responses: list[str]) -> list[float]` on
              Python's path, as for `WeightedScorer`. It is imported and called.
        label_name: Name or index of a label.
        dtype: Type of the weights.
        device: Device of the model.

    Raises:
        CheckpointError: If the model cannot be loaded.
        InvalidArgumentError: If there is no such function or label, or `label_name` is missing or not needed.
        RewardModelError: If a checkpoint is marked as a reward model and is none.
    """
    function = reward_function(name)
    if function is not None:
        _check_no_label(label_name, "a function")
        return FunctionJudge(function, name)
    config = _classifier_config(name)
    if config is None or config.num_labels == 1:
        model = _reward_model(name, dtype, device, must_be_one=config is None)
        if model is not None:
            _check_no_label(label_name, "a reward model")
            return RewardModelJudge(model)
    return _classifier(name, label_name, dtype, device)


def reward_function(name: str) -> RewardFunction | None:
    """The function named by `package.module:function`; None for a name of another form.

    Raises:
        InvalidArgumentError: If there is no such function.
    """
    return _import_function(name) if _IMPORT_PATH.fullmatch(name) and not Path(name).exists() else None


class FunctionJudge:
    """Calls a function with the prompts and the answers as texts.

    Args:
        function: The function.
        name: Its name in error messages.
    """

    def __init__(self, function: RewardFunction, name: str) -> None:
        self._function = function
        self._name = name

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """The reward of each answer; see `Judge`."""
        rewards = self._function([prompt.text for prompt in prompts], list(answers))
        return list(checked_rewards(rewards, len(answers), self._name).tolist())


class RewardModelJudge:
    """The reward of the finished text, as `RewardModel.score` gives it.

    Messages and the answer are rendered by the reward model's own chat template, as in training. The reward of a
    "log_ratio" model with a reference is the difference of the two log-probabilities.

    Args:
        reward_model: A reward model with a tokenizer.

    Attributes:
        readers: The modules whose forwards process the texts.
    """

    def __init__(self, reward_model: RewardModel) -> None:
        self._models = [reward_model]
        self._tokenizer = reward_model.tokenizer
        if reward_model.config.reference is not None:
            reference = RewardModel.from_pretrained(
                reward_model.config.reference, kind="log_ratio", dtype=reward_model.dtype
            )
            reference.model.to(reward_model.device)
            self._models.append(reference)
        limits = [model.max_length for model in self._models]
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        self.readers = [model.backbone for model in self._models]

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """The reward of each answer; see `Judge`."""
        rows = [self._tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        short = [row for row in rows if self._fits(row)]
        if not short:
            return [None] * len(rows)
        rewards = self._models[0].score_rows(short, batch_size=len(short))
        for reference in self._models[1:]:
            rewards = rewards - reference.score_rows(short, batch_size=len(short))
        remaining = iter(rewards.tolist())
        return [next(remaining) if self._fits(row) else None for row in rows]

    def _fits(self, row: Sequence[int]) -> bool:
        return self._limit is None or len(row) <= self._limit

    def _tokens(self, prompt: Prompt, answer: str) -> list[int]:
        tokenizer: Any = self._tokenizer
        if isinstance(prompt.value, str):
            return encode_finished(tokenizer, prompt.value + answer)
        if tokenizer.chat_template is None:
            raise RewardModelError(
                "Expected a reward model with a chat template, because the prompts are messages, but its tokenizer has "
                "none. Use one that was trained on chats, or a function that renders (prompt, response) for it."
            )
        return encode_conversation(tokenizer, [*prompt.value, {"role": "assistant", "content": answer}])


class ClassifierJudge:
    """The log-odds of a label, or the output of a model with one label.

    Args:
        model: A `…ForSequenceClassification` model of any architecture.
        tokenizer: Its tokenizer.
        label: Index of the label.

    Attributes:
        readers: The modules whose forwards process the texts.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._label = label
        self.readers = [model]
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # RoBERTa has two positions more than a text may have tokens, which only its tokenizer knows.
        self._limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """The reward of each answer; see `Judge`."""
        texts = [prompt.text + answer for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [list(self._tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return [self._log_odds(row) if len(row) <= self._limit else None for row in rows]

    @torch.no_grad()
    def _log_odds(self, row: list[int]) -> float:
        # One text at a time: a decoder classifier finds the last token that is not padding by its id, so
        # a padding token that also occurs in texts would mislead it.
        logits = self._model(input_ids=torch.tensor([row], device=self._model.device)).logits[0].double()
        # The output of a model with one label, or of a sigmoid head, whose logit is the log-odds already.
        if len(logits) == 1 or self._model.config.problem_type == "multi_label_classification":
            return float(logits[self._label])
        # Softmax log-odds log p/(1 − p), computed from logits: 1 − p would lose its digits where p is near 1.
        others = torch.cat([logits[: self._label], logits[self._label + 1 :]])
        return float(logits[self._label] - others.logsumexp(0))


def _import_function(path: str) -> RewardFunction:
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidArgumentError(
            f"Expected {path!r} to be a function that Python can import, but {error}. Write it as "
            "package.module:function, and put the folder of the package on PYTHONPATH."
        ) from error
    if not callable(function):
        raise InvalidArgumentError(
            f"Expected {path!r} to be a function (prompts, responses) -> rewards, but it is "
            f"{type(function).__name__}. Name a function."
        )
    return function


def _check_no_label(label_name: str | None, judge: str) -> None:
    if label_name is not None:
        raise InvalidArgumentError(
            f"Expected label_name for a classifier with several labels only, but got {label_name!r} for {judge}. "
            "Leave --label_name out."
        )


def _classifier_config(name: str) -> Any:
    """The config of a sequence classifier that is not marked as a reward model; None for anything else."""
    try:
        if find_adapter_config_file(name) is not None:
            return None
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        # Loading it as a reward model reports what is wrong.
        return None
    classifies = any("ForSequenceClassification" in item for item in config.architectures or [])
    return config if classifies and getattr(config, "rgtg", None) is None else None


def _reward_model(name: str, dtype: str, device: str, *, must_be_one: bool) -> RewardModel | None:
    """The reward model; None for an encoder, which is loaded as a classifier.

    Args:
        name: Hub id or folder.
        dtype: Type of the weights.
        device: Device of the model.
        must_be_one: Whether an encoder is an error, because the checkpoint can only be a reward model.
    """
    try:
        with warnings.catch_warnings():
            # Only finished texts are judged, for which every way of training is good.
            warnings.filterwarnings("ignore", message=".*does not say how it was trained")
            model = RewardModel.from_pretrained(name, dtype=dtype)
        model.model.to(device)
        if not must_be_one:
            with torch.no_grad():
                check_causal(model, torch.arange(8, device=model.device))
    except RewardModelError:
        if must_be_one:
            raise
        return None
    return model


def _classifier(name: str, label_name: str | None, dtype: str, device: str) -> ClassifierJudge:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"Expected {name!r} to hold a …ForSequenceClassification model in safetensors and its tokenizer, but "
            f"loading it failed: {error} Check the name; convert pickled weights with save_pretrained."
        ) from error
    if info["missing_keys"]:
        raise CheckpointError(
            f"Expected {name!r} to hold every weight of {type(model).__name__}, but it lacks "
            f"{', '.join(sorted(info['missing_keys']))}, which would be random. Name a checkpoint with a trained head."
        )
    label = _label(model.config, name, label_name)
    return ClassifierJudge(model.to(device).eval(), tokenizer, label)


def _label(config: Any, name: str, label_name: str | None) -> int:
    if config.num_labels == 1:
        _check_no_label(label_name, "a classifier with one label")
        return 0
    for index, label in config.id2label.items():
        if label_name in (label, str(index)):
            return int(index)
    labels = ", ".join(f"{label!r} ({index})" for index, label in config.id2label.items())
    raise InvalidArgumentError(
        f"Expected label_name to say whose log-odds are the reward, because {name!r} tells several labels apart, "
        f"{labels}, but got {label_name!r}. Pass --label_name."
    )
