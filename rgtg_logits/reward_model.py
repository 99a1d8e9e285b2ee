"""A reward model: a checkpoint, and how to read the reward of every prefix from it.

On disk it is an ordinary transformers checkpoint (`…ForSequenceClassification`, `num_labels=1`, safetensors) with one
more dict in `config.json`:

    "rgtg": {"version": 1, "kind": "causal", "objective": "partial_bt", ...}

so that it loads with `AutoModelForSequenceClassification` and without this library.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rgtg_logits._checkpoint import ADAPTER_FILE, check_classifier, load_checkpoint
from rgtg_logits.errors import CheckpointError, InvalidArgumentError, RewardModelError

KINDS = ("causal",)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """What `config.rgtg` says about a reward model.

    Attributes:
        version: Version of this dict.
        kind: How a reward is read: "causal" is a scalar head on the state of each token.
        objective: What the model was trained on: "partial_bt" (Bradley-Terry on every prefix pair, arXiv
            2406.07780), "full_bt" (on whole sequences only), or None when nobody said.
    """

    version: int = 1
    kind: str = "causal"
    objective: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RewardModelConfig:
        """Reads the dict; keys that a later version added are ignored."""
        config = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        if config.kind not in KINDS:
            raise CheckpointError(
                f"Expected config.rgtg['kind'] to be one of {', '.join(KINDS)}, but it is {config.kind!r}. "
                "The checkpoint was made for another version of rgtg_logits: upgrade the library."
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The dict that goes into `config.json`."""
        return asdict(self)


class RewardModel:
    """A scalar reward for every prefix of a text, read from a causal sequence classifier.

    Args:
        model: A transformers `…ForSequenceClassification` model with `num_labels=1` and a causal backbone, or the same
            wrapped by PEFT. It is used as it is (device, dtype, quantisation) and put into evaluation mode.
        tokenizer: Its tokenizer. Needed for texts; token ids are scored without one.
        config: What the checkpoint says of itself; by default `model.config.rgtg`.

    Raises:
        RewardModelError: If the model has no scalar head, or is an encoder-decoder.

    Example:
        ```python
        rm = RewardModel.from_pretrained("org/partial-rm")
        rm.score(["The film was"], [" a delight."])  # tensor([2.31])
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        config: RewardModelConfig | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        inner = model if isinstance(model, PreTrainedModel) else _unwrapped(model)
        if not isinstance(inner, PreTrainedModel):
            raise RewardModelError(
                f"Expected a transformers …ForSequenceClassification model, but got {type(inner).__name__}. "
                "Load one with RewardModel.from_pretrained or AutoModelForSequenceClassification."
            )
        check_classifier(inner.config, type(inner).__name__)
        self._inner = inner
        self.backbone, self.head = _split(inner)
        self._takes_positions = "position_ids" in signature(self.backbone.forward).parameters
        stored = getattr(inner.config, "rgtg", None)
        self.config = config or (RewardModelConfig.from_dict(stored) if stored else RewardModelConfig())

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        revision: str | None = None,
        **hub: Any,
    ) -> RewardModel:
        """Loads a reward model from the Hub or from a folder.

        Args:
            name_or_path: A Hub id ("org/name") or a folder.
            dtype: Type of the weights; by default the checkpoint's own.
            device_map: As in transformers.
            quantization_config: As in transformers.
            revision: Branch, tag or commit on the Hub.
            hub: `token`, `cache_dir`, `local_files_only`, as in transformers.

        Raises:
            CheckpointError: If there is no such repository or folder, if it holds no safetensors weights or no trained
                scalar head, or if it needs code of its own (never run here).
        """
        name = str(name_or_path)
        hub = {"revision": revision, "trust_remote_code": False, **hub}
        options = {"dtype": dtype or "auto", "device_map": device_map, "quantization_config": quantization_config}
        options = {key: value for key, value in options.items() if value is not None}
        model, tokenizer, stored = load_checkpoint(name, options, hub)
        if stored is None:
            warnings.warn(
                f"{name!r} does not say how it was trained, so it is taken to be a reward model of finished texts: its "
                "rewards of prefixes are untrained. Train one on partial sequences with `rgtg train`.",
                stacklevel=2,
            )
        return cls(model, tokenizer, config=None if stored is None else RewardModelConfig.from_dict(stored))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the checkpoint (safetensors, config with `rgtg`, tokenizer); each file appears whole or not at all."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self._inner.config.rgtg = self.config.to_dict()
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            cast(Any, self.model).save_pretrained(partial)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(partial)
            if self.model is not self._inner:
                (partial / ADAPTER_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
            # The config goes last because a folder without it is not taken for a checkpoint.
            for file in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                file.replace(target / file.name)
        finally:
            shutil.rmtree(partial)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **commit: Any) -> str:
        """Uploads the checkpoint in one commit and returns its address; `commit` goes to `HfApi.upload_folder`."""
        from huggingface_hub import HfApi  # noqa: PLC0415  (the client is needed here only)

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "checkpoint")
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "checkpoint", **commit))

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return cast(torch.device, self.backbone.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the backbone computes."""
        return self.backbone.dtype

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        return int(self.backbone.get_input_embeddings().weight.shape[0])

    @property
    def pad_token_id(self) -> int | None:
        """The padding token, from the tokenizer or else from the model's config."""
        token = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return token if token is not None else self.text_config.pad_token_id

    @property
    def max_length(self) -> int | None:
        """The longest prefix it can read, in tokens; None if its config sets no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def sliding_window(self) -> int | None:
        """How many tokens its sliding attention layers see; None without such layers."""
        return getattr(self.text_config, "sliding_window", None)

    @property
    def layer_types(self) -> list[str] | None:
        """Kind of attention of each layer, where the config lists them."""
        return getattr(self.text_config, "layer_types", None)

    @property
    def text_config(self) -> Any:
        """The backbone's own configuration."""
        return self._inner.config.get_text_config()

    def hidden_states(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Int[Tensor, "#batch new"] | None,
        cache: Cache | None = None,
        *,
        use_cache: bool = False,
    ) -> tuple[Float[Tensor, "batch new hidden"], Cache | None]:
        """Runs the backbone once: the last layer's state of each new token, and the cache it left."""
        positions = {"position_ids": position_ids} if self._takes_positions and position_ids is not None else {}
        output = self.backbone(
            input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=use_cache, **positions
        )
        return output.last_hidden_state, output.past_key_values if use_cache else None

    def rewards(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        """Reads rewards (float32, the model's own unit) from states of the last layer."""
        return self.head(hidden).squeeze(-1).float()

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length"]:
        """The reward of every prefix of every row, in one forward.

        Args:
            input_ids: Token ids, padded on either side.
            attention_mask: 1 for text, 0 for padding; all text by default.

        Returns:
            Rewards in the model's own unit; entry (b, t) is the reward of row b up to and with token t. 0 at padding.
        """
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        hidden, _ = self.hidden_states(input_ids, mask, positions(mask))
        return self.rewards(hidden).masked_fill(mask == 0, 0.0)

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 16
    ) -> Float[Tensor, " batch"]:
        """The rewards of finished texts.

        Each text is prompt + response, tokenised in one go and closed with the end-of-text token, as in training.

        Raises:
            InvalidArgumentError: If the lists differ in length, or the model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "Expected a reward model with a tokenizer, because score() reads text, but it has none. "
                "Pass tokenizer= to RewardModel, or use score_tokens()."
            )
        if len(prompts) != len(responses):
            raise InvalidArgumentError(
                f"Expected one response for each prompt, but got {len(prompts)} prompts and {len(responses)} responses."
            )
        eos = self.tokenizer.eos_token_id
        rows: list[list[int]] = []
        for prompt, response in zip(prompts, responses, strict=True):
            ids = list(self.tokenizer(prompt + response)["input_ids"])
            rows.append(ids if eos is None or ids[-1:] == [eos] else [*ids, eos])
        scores = [self._score_finished(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return torch.cat(scores) if scores else torch.empty(0)

    def _score_finished(self, rows: list[list[int]]) -> Float[Tensor, " batch"]:
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        input_ids = torch.zeros_like(mask)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
        return self.score_tokens(input_ids, mask).cpu().gather(1, lengths[:, None] - 1)[:, 0]


def positions(mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Position of each token in its own text; padding on the left counts for nothing.

    Passed explicitly because models with learned positions count slots, padding included, when left to themselves.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, whose layers the wrapper has extended in place."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def _split(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """The backbone, and the one linear layer that follows it."""
    backbone = cast(PreTrainedModel, model.base_model)
    # Dropout does nothing here; anything else with weights would be left out of the reward.
    heads = [
        child for child in model.children() if child is not backbone and next(child.parameters(), None) is not None
    ]
    if backbone is model or len(heads) != 1 or next(heads[0].parameters()).shape[0] != 1:
        raise RewardModelError(
            "Expected a decoder-only …ForSequenceClassification model, a causal backbone followed by one linear layer "
            f"with one output, but {type(model).__name__} is built otherwise. Use a decoder-only reward model, loaded "
            "with AutoModelForSequenceClassification and num_labels=1."
        )
    return backbone, heads[0]
