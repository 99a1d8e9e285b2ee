"""Upload of a checkpoint to the Hub in exactly one commit, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from rgtg_logits.errors import HubError, InvalidArgumentError, RGTGError
from rgtg_logits.hub.checkpoint import Checkpoint
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain, is_transient, retry, status_code
from rgtg_logits.hub.files import obsolete_files

_TRAINER_FILES = ("training_args.bin",)
"""Left in the repository by the trainer's own uploads during training; a pickle."""


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Destination of a checkpoint on the Hub, and title and text of its commit.

    Attributes:
        private: Whether a repository that is created is private; by default as the namespace's settings say. If True,
            a repository that exists and is public is refused.
        revision: The branch, created from main if it does not exist; main by default.
        commit_message: Title of the commit.
        commit_description: Text below the title.
        create_pr: Whether to open a pull request instead of committing to main.
        token: Access token; by default that of HF_TOKEN or of the login.

    Raises:
        InvalidArgumentError: If a pull request is to go to another branch than main, or the commit has no title.
    """

    private: bool | None = None
    revision: str | None = None
    commit_message: str = "Upload reward model"
    commit_description: str | None = None
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.create_pr and self.revision not in (None, "main"):
            raise InvalidArgumentError(
                f"Expected a pull request to go to main, but got revision={self.revision!r} too. Leave one of them out."
            )
        if not self.commit_message.strip():
            raise InvalidArgumentError("Expected commit_message to be a title, but it is empty. Write what is new.")


def upload(checkpoint: Checkpoint, repo_id: str, options: PushOptions) -> str:
    """Uploads a checkpoint in one commit, which also deletes files of an older checkpoint that it does not have.

    Only `Checkpoint.files_to_upload` are uploaded. A repository or branch that this call creates is deleted again if
    the commit fails. If the answer to the commit is lost, the history of the branch shows whether it arrived.

    Args:
        checkpoint: The checkpoint.
        repo_id: Name on the Hub, "organisation/name", or "name" for the user's own.
        options: Destination, and title and text of the commit.

    Returns:
        The address of the commit, or of the pull request. Files that the repository has already are not sent again; if
        there is nothing new, it is the address of the last commit.

    Raises:
        HubError: If the Hub refuses or fails, or the connection does. The repository is then as it was; where that is
            not certain, the message says so.
    """
    # Before the Hub is asked for anything, because the card may be unreadable.
    files = checkpoint.files_to_upload()
    return _UploadTransaction(HfApi(token=options.token), repo_id, options).run(checkpoint.folder, files)


class _UploadTransaction:
    """One upload that is rolled back if it fails: a repository or branch that it created is deleted again.

    Attributes:
        created: Description and deletion of each thing that was created so far.
    """

    def __init__(self, api: HfApi, repo_id: str, options: PushOptions) -> None:
        self.api = api
        self.repo_id = repo_id
        self.options = options
        self.created: list[tuple[str, Callable[[], object]]] = []

    def run(self, folder: Path, files: list[str]) -> str:
        try:
            head = self._prepare_branch()
            address = self._commit(folder, files, head)
            self.created.clear()
            return address
        except CLIENT_ERRORS as error:
            if isinstance(error, RGTGError):
                raise
            message = explain(error, f"push to {self.repo_id!r} on the Hub") + self._roll_back()
            raise HubError(message) from error
        finally:
            # Here too because of interrupts, which are no CLIENT_ERRORS.
            if remainder := self._roll_back():
                warnings.warn(remainder.strip(), stacklevel=4)

    def _prepare_branch(self) -> Any:
        """Creates the repository and the branch if they do not exist; returns the Hub's description of the branch."""
        if "/" not in self.repo_id:
            self.repo_id = f"{self.api.whoami()['name']}/{self.repo_id}"
        try:
            repository = self._request_info(None)
        except GatedRepoError:
            # The repository exists, but the client derives this error from the one below.
            raise
        except RepositoryNotFoundError:
            repository = self._create_repository()
        if self.options.private and repository.private is False:
            raise HubError(
                f"Expected {self.repo_id!r} to be a private repository, but it exists and is public. Make it private "
                "in its settings, push to another name, or leave private out."
            )
        branch = self.options.revision
        if branch in (None, "main"):
            return repository
        try:
            return self._request_info(branch)
        except RevisionNotFoundError:
            return self._create_branch(branch)

    def _create_repository(self) -> Any:
        self._create(lambda: self.api.create_repo(self.repo_id, private=self.options.private), None)
        self.created.append(("repository", lambda: self.api.delete_repo(self.repo_id)))
        return self._request_info(None)

    def _create_branch(self, branch: str) -> Any:
        self._create(lambda: self.api.create_branch(self.repo_id, branch=branch), branch)
        self.created.append((f"branch {branch!r}", lambda: self.api.delete_branch(self.repo_id, branch=branch)))
        return self._request_info(branch)

    def _create(self, request: Callable[[], object], revision: str | None) -> None:
        """Creates a repository or branch that did not exist.

        If the answer is lost, but it exists now and is empty, this request has created it.
        """
        try:
            retry(request, idempotent=False)
        except CLIENT_ERRORS as error:
            if not _may_have_succeeded(error):
                raise
            try:
                info = self._request_info(revision)
            except CLIENT_ERRORS:
                raise error from None
            is_empty = {file.rfilename for file in info.siblings or []} <= {".gitattributes"}
            if revision is None and not is_empty:
                raise

    def _request_info(self, revision: str | None) -> Any:
        return retry(lambda: self.api.model_info(self.repo_id, revision=revision), idempotent=True)

    def _commit(self, folder: Path, files: list[str], head: Any) -> str:
        """Commits on top of `head`, so that it fails if somebody else has pushed in between.

        `HfApi.upload_folder` is not used because with hf_xet (huggingface_hub 2) it splits a large folder into several
        commits, and its patterns match across folders; `create_commit` is always one commit.
        """
        options = self.options
        operations = _commit_operations(folder, files, head)

        def commit() -> str:
            info = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=options.commit_message,
                commit_description=options.commit_description,
                revision=options.revision,
                create_pr=options.create_pr,
                parent_commit=head.sha,
            )
            return str(info.pr_url or info.commit_url)

        try:
            return retry(commit, idempotent=False)
        except CLIENT_ERRORS as error:
            address = self._find_commit(head.sha, error) if _may_have_succeeded(error) else None
            if address is None:
                raise
            return address

    def _find_commit(self, parent: str, error: BaseException) -> str | None:
        """The address of this push's commit if it is on the branch after all, otherwise None."""
        if self.options.create_pr:
            raise HubError(
                f"{explain(error, f'open a pull request of {self.repo_id!r} on the Hub')} Look on its page first "
                "whether it was opened all the same."
            ) from error
        branch = self.options.revision
        try:
            if self._request_info(branch).sha == parent:
                return None
            # Without `retry`, because the client repeats this request itself.
            commits = self.api.list_repo_commits(self.repo_id, revision=branch)
        except CLIENT_ERRORS as second_error:
            raise HubError(
                f"{explain(error, f'push to {self.repo_id!r} on the Hub')} It could not be asked either whether the "
                f"commit arrived all the same: look at {self.api.endpoint}/{self.repo_id}/commits first."
                f"{self._roll_back()}"
            ) from second_error
        last_ids = [commit.commit_id for commit in commits[:2]]
        if last_ids[1:] == [parent] and commits[0].title == self.options.commit_message:
            return f"{self.api.endpoint}/{self.repo_id}/commit/{last_ids[0]}"
        return None

    def _roll_back(self) -> str:
        """Deletes what was created, the last first; returns a message about what could not be deleted."""
        messages = []
        while self.created:
            description, delete = self.created.pop()
            try:
                delete()
            except CLIENT_ERRORS as error:
                messages.append(
                    f" The empty {description} that was created for it could not be deleted again: delete it on "
                    f"{self.api.endpoint}/{self.repo_id}/settings. ({explain(error, 'delete it')})"
                )
        return "".join(messages)


def _commit_operations(folder: Path, files: list[str], head: Any) -> list[Any]:
    """Additions of the checkpoint's files, and deletions of an older checkpoint's."""
    existing = [file.rfilename for file in head.siblings or []]
    obsolete = obsolete_files(existing, files, extra_patterns=_TRAINER_FILES)
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files),
        *(CommitOperationDelete(path_in_repo=name) for name in obsolete),
    ]


def _may_have_succeeded(error: BaseException) -> bool:
    """Whether no answer came, or an error from something in between, so that the request may have been carried out."""
    return is_transient(error) and status_code(error) != 429
