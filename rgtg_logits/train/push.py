"""Push of a trained model: of the folder that was saved, or of its adapter merged into the base model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rgtg_logits.errors import HubError, InvalidArgumentError
from rgtg_logits.hub import CARD, CLIENT_ERRORS, PushOptions, explain
from rgtg_logits.reward_model import RewardModel, push_folder

logger = logging.getLogger(__name__)


class HubPushMixin:
    """Mixin of a trainer whose `push_to_hub` uploads the files that others need to load the model, in one commit."""

    args: Any
    state: Any
    control: Any
    callback_handler: Any
    model: Any
    hub_model_id: str | None
    save_model: Callable[..., None]
    create_model_card: Callable[..., None]
    is_world_process_zero: Callable[[], bool]

    _merging = False
    """Whether the card that is being written describes the model with its adapter merged."""

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        """Creates the repository before the training, so that a token without permission fails early.

        Raises:
            HubError: If the Hub refuses or fails, or the connection does.
        """
        try:
            super().init_hf_repo(*args, **options)  # type: ignore[misc]
        except CLIENT_ERRORS as error:
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            raise HubError(explain(error, f"create {name!r} on the Hub before training")) from error

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        adapter: bool | None = None,
        **card: Any,
    ) -> str | None:
        """Saves model and card to `output_dir` and uploads only these, in one commit or not at all.

        Args:
            commit_message: Title of the commit.
            blocking: Has no effect: the upload is always waited for, because otherwise a failure would go unnoticed.
            token: Access token; by default that of the training arguments, of HF_TOKEN or of the login.
            revision: The branch, created if it does not exist; by default that of the training arguments.
            private: Whether a repository that is created is private; by default as the training arguments say.
            adapter: True to upload a trained adapter alone, False to upload the base model with the adapter merged into
                its weights; by default it is merged, unless the base model is quantised.
            card: Arguments of `create_model_card`.

        Returns:
            The address of the commit; None on all processes but the first.

        Raises:
            HubError: If the Hub refuses or fails, or the connection does; the repository is then as it was.
            CheckpointError: If others could not load the model.
            InvalidArgumentError: If there is no adapter to upload.
        """
        merge = merges(self.model, adapter)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        repository = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        options = PushOptions(
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or "End of training",
            token=token or self.args.hub_token,
        )
        # Uploads of the trainer itself during training must not commit at the same time.
        background = getattr(self, "push_in_progress", None)
        if background is not None:
            background.wait_until_done()
        try:
            self._merging = merge
            self.create_model_card(**card)
            return push_saved(self.args.output_dir, repository, options, dtype=self.model.dtype, merge=merge)
        finally:
            self._merging = False
            if merge:
                # The folder still holds the adapter, so its card has to describe that.
                self.create_model_card(**card)


def merges(model: nn.Module, adapter: bool | None) -> bool:
    """Whether to upload a trained model with its adapter merged into the base model.

    Args:
        model: The trained model.
        adapter: True to upload the adapter, False to merge it. By default it is merged, unless the base model is
            quantised (QLoRA): an adapter trained on rounded weights fits the exact ones less well.

    Raises:
        InvalidArgumentError: If there is no adapter to upload.
    """
    if not isinstance(model, PeftModel):
        if adapter:
            raise InvalidArgumentError(
                "Expected a training with an adapter, because of adapter=True, but it trains the whole model. Leave "
                "adapter out."
            )
        return False
    quantised = bool(getattr(model.get_base_model(), "is_quantized", False))
    if adapter is None and quantised:
        logger.warning("The adapter is uploaded without its base model, which is quantised (QLoRA).")
    if adapter is None:
        return not quantised
    return not adapter


def push_saved(folder: str, repo_id: str, options: PushOptions, *, dtype: torch.dtype, merge: bool) -> str:
    """Uploads a model that was saved after training, in one commit.

    Args:
        folder: A folder with the checkpoint and its card; other files in it are not uploaded.
        repo_id: Name on the Hub.
        options: Destination, and title and text of the commit.
        dtype: Type of the trained model's weights, in which the base model is loaded.
        merge: Whether to merge the adapter into its base model, on the CPU.

    Returns:
        The address of the commit or of the pull request.
    """
    if not merge:
        return push_folder(Path(folder), repo_id, options)
    return RewardModel.from_pretrained(folder, dtype=dtype).push_to_hub(
        repo_id,
        adapter=False,
        card=Path(folder, CARD),
        private=options.private,
        revision=options.revision,
        commit_message=options.commit_message,
        token=options.token,
    )
