"""What judges finished answers: a reward model, a classifier, or a function of the user's own."""

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
from rgtg_logits.tokenization import encode_finished

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]
"""Gives the reward of each (prompt, answer), perhaps not finite; None where the text is longer than it can read."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_reward(name: str, *, label_name: str | None = None, dtype: str = "auto", device: str = "cpu") -> Judge:
    """Loads what judges answers.

    Args:
        name: One of

            - a Hub id or folder of a reward model, of any kind (`RewardModel`);
            - one of a `…ForSequenceClassification` model: with one label, its output; with several, the log-odds of
              `label_name`. Texts are prompt and answer in one, as its tokenizer makes them;
            - `package.module:function`, a function `(prompts: list[str], responses: list[str]) -> list[float]` of your
              own on Python's path, as `WeightedScorer` takes them. It is imported and called.
        label_name: Name or index of a label.
        dtype: Type of the weights.
        device: Where a model runs.

    Raises:
        CheckpointError: If it cannot be loaded.
        InvalidArgumentError: If there is no such function or label, or a label is missing or too many.
        RewardModelError: If a checkpoint says that it is a reward model and is none.
    """
    function = reward_function(name)
    if function is not None:
        _no_label(label_name, "a function")
        return FunctionJudge(function, name)
    config = _classifier_config(name)
    if config is None or config.num_labels == 1:
        model = _reward_model(name, dtype, device, sure=config is None)
        if model is not None:
            _no_label(label_name, "a reward model")
            return RewardModelJudge(model)
    return _classifier(name, label_name, dtype, device)


def reward_function(name: str) -> RewardFunction | None:
    """The function that a name of the form `package.module:function` means; None of a name of another form.

    Raises:
        InvalidArgumentError: If there is no such function.
    """
    return _import(name) if _IMPORT_PATH.fullmatch(name) and not Path(name).exists() else None


class FunctionJudge:
    """Calls a function with the prompts and the answers as texts.

    Args:
        function: The function.
        name: What it is called in errors.
    """

    def __init__(self, function: RewardFunction, name: str) -> None:
        self._function, self._name = function, name

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """One reward for each answer; see `Judge`."""
        rewards = self._function([prompt.text for prompt in prompts], list(answers))
        return list(checked_rewards(rewards, len(answers), self._name).tolist())


class RewardModelJudge:
    """Reads the reward of the finished text, as `RewardModel.score` does.

    Of messages it reads what its own chat template makes of them and the answer, as in training. A "log_ratio" model
    with a reference is read as the difference of the two.

    Args:
        reward_model: A reward model with a tokenizer.

    Attributes:
        readers: The modules whose forwards read the texts.
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
        """One reward for each answer; see `Judge`."""
        rows = [self._tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        short = [row for row in rows if self._limit is None or len(row) <= self._limit]
        if not short:
            return [None] * len(rows)
        rewards = self._models[0].score_rows(short, batch_size=len(short))
        for reference in self._models[1:]:
            rewards = rewards - reference.score_rows(short, batch_size=len(short))
        judged = iter(rewards.tolist())
        return [next(judged) if self._limit is None or len(row) <= self._limit else None for row in rows]

    def _tokens(self, prompt: Prompt, answer: str) -> list[int]:
        tokenizer: Any = self._tokenizer
        if isinstance(prompt.value, str):
            return encode_finished(tokenizer, prompt.value + answer)
        if tokenizer.chat_template is None:
            raise RewardModelError(
                "Expected a reward model with a chat template, because the prompts are messages, but its tokenizer has "
                "none. Use one that was trained on chats, or a function that renders (prompt, response) for it."
            )
        messages = [*prompt.value, {"role": "assistant", "content": answer}]
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


class ClassifierJudge:
    """The log-odds of a label, or the output of a model with one label.

    Args:
        model: A `…ForSequenceClassification` model of any architecture.
        tokenizer: Its tokenizer.
        label: Index of the label.

    Attributes:
        readers: The modules whose forwards read the texts.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: int) -> None:
        self._model, self._tokenizer, self._label = model, tokenizer, label
        self.readers = [model]
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # Some have more positions than a text may have tokens, and only the tokenizer knows.
        self._limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """One reward for each answer; see `Judge`."""
        texts = [prompt.text + answer for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [list(self._tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return [self._log_odds(row) if len(row) <= self._limit else None for row in rows]

    @torch.no_grad()
    def _log_odds(self, row: list[int]) -> float:
        # One text at a time, because padding misleads the models whose padding token is also one of text.
        logits = self._model(input_ids=torch.tensor([row], device=self._model.device)).logits[0].double()
        if len(logits) == 1 or self._model.config.problem_type == "multi_label_classification":
            return float(logits[self._label])
        others = torch.cat([logits[: self._label], logits[self._label + 1 :]])
        return float(logits[self._label] - others.logsumexp(0))


def _import(path: str) -> RewardFunction:
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


def _no_label(label_name: str | None, what: str) -> None:
    if label_name is not None:
        raise InvalidArgumentError(
            f"Expected label_name for a classifier with several labels only, but got {label_name!r} for {what}. "
            "Leave --label_name out."
        )


def _classifier_config(name: str) -> Any:
    """The config of a sequence classifier that does not say it is a reward model; None for anything else."""
    try:
        if find_adapter_config_file(name) is not None:
            return None
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        # Loading it as a reward model will say what is wrong.
        return None
    classifies = any("ForSequenceClassification" in item for item in config.architectures or [])
    return config if classifies and getattr(config, "rgtg", None) is None else None


def _reward_model(name: str, dtype: str, device: str, *, sure: bool) -> RewardModel | None:
    """The reward model; None if it turns out to be an encoder, which is read as a classifier."""
    try:
        with warnings.catch_warnings():
            # Finished texts are what is judged.
            warnings.filterwarnings("ignore", message=".*does not say how it was trained")
            model = RewardModel.from_pretrained(name, dtype=dtype)
        model.model.to(device)
        if not sure:
            with torch.no_grad():
                check_causal(model, torch.arange(8, device=model.device))
    except RewardModelError:
        if sure:
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
        _no_label(label_name, "a classifier with one label")
        return 0
    for index, label in config.id2label.items():
        if label_name in (label, str(index)):
            return int(index)
    labels = ", ".join(f"{label!r} ({index})" for index, label in config.id2label.items())
    raise InvalidArgumentError(
        f"Expected label_name to say whose log-odds are the reward, because {name!r} tells several labels apart, "
        f"{labels}, but got {label_name!r}. Pass --label_name."
    )
