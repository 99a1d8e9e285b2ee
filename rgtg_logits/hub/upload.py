"""The one place that uploads: a checkpoint's files to the Hub in exactly one commit, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from rgtg_logits.errors import HubError, InvalidArgumentError, RGTGError
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain, is_transient, retry, status_of
from rgtg_logits.hub.files import checkpoint_files, stale_files


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where a checkpoint goes on the Hub, and what its commit says.

    Attributes:
        private: Whether a repository that is created is private; by default as the namespace's settings say. A public
            repository that exists is refused where a private one is asked for.
        revision: The branch, created from main if it does not exist; main by default.
        commit_message: Title of the commit.
        commit_description: Its further text.
        create_pr: Whether to open a pull request instead of committing to main.
        token: Access token; by default that of HF_TOKEN or of the login.

    Raises:
        InvalidArgumentError: If a pull request to another branch than main is asked for, or a commit without a title.
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


def upload(folder: Path, repo_id: str, options: PushOptions) -> str:
    """Uploads the files of a checkpoint in one commit, which also deletes those of an older one that it does not have.

    Only what `checkpoint_files` names is uploaded. A repository or branch that this call creates is deleted again if
    the commit fails. If the answer to the commit is lost, the branch says whether it arrived.

    Args:
        folder: A complete checkpoint.
        repo_id: Name on the Hub, "organisation/name", or "name" for the user's own.
        options: Where it goes and what the commit says.

    Returns:
        The address of the commit, or of the pull request. Files that are there already are not sent again, and if
        nothing is new, that is the address of the last commit.

    Raises:
        CheckpointError: If the folder is no checkpoint of safetensors.
        HubError: If the Hub refuses or fails, or the connection does. The repository is then as it was; if that cannot
            be said for sure, the message tells it.
    """
    files = checkpoint_files(folder)
    return _Push(HfApi(token=options.token), repo_id, options).run(folder, files)


class _Push:
    """One upload: what it has created so far, to be deleted again if it fails."""

    def __init__(self, api: HfApi, repo_id: str, options: PushOptions) -> None:
        self.api, self.repo_id, self.options = api, repo_id, options
        self.created: list[tuple[str, Callable[[], object]]] = []

    def run(self, folder: Path, files: list[str]) -> str:
        try:
            head = self._prepare()
            address = self._commit(folder, files, head)
            self.created.clear()
            return address
        except CLIENT_ERRORS as error:
            if isinstance(error, RGTGError):
                raise
            message = explain(error, f"push to {self.repo_id!r} on the Hub") + self._undo()
            raise HubError(message) from error
        finally:
            # Also when it is interrupted.
            if left := self._undo():
                warnings.warn(left.strip(), stacklevel=4)

    def _prepare(self) -> Any:
        """Creates the repository and the branch if they do not exist, and returns what the Hub says of the branch."""
        if "/" not in self.repo_id:
            self.repo_id = f"{self.api.whoami()['name']}/{self.repo_id}"
        try:
            there = self._info(None)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            there = self._create()
        if self.options.private and there.private is False:
            raise HubError(
                f"Expected {self.repo_id!r} to be a private repository, but it exists and is public. Make it private "
                "in its settings, push to another name, or leave private out."
            )
        branch = self.options.revision
        if branch in (None, "main"):
            return there
        try:
            return self._info(branch)
        except RevisionNotFoundError:
            self._make(lambda: self.api.create_branch(self.repo_id, branch=branch), branch)
            self.created.append((f"branch {branch!r}", lambda: self.api.delete_branch(self.repo_id, branch=branch)))
            return self._info(branch)

    def _create(self) -> Any:
        self._make(lambda: self.api.create_repo(self.repo_id, private=self.options.private), None)
        self.created.append(("repository", lambda: self.api.delete_repo(self.repo_id)))
        return self._info(None)

    def _make(self, create: Callable[[], object], revision: str | None) -> None:
        """Creates what does not exist. If the answer is lost, and it exists now and is empty, it is this push's."""
        try:
            retry(create, repeatable=False)
        except CLIENT_ERRORS as error:
            if not _is_lost(error):
                raise
            try:
                there = self._info(revision)
            except CLIENT_ERRORS:
                raise error from None
            own = {file.rfilename for file in there.siblings or []} <= {".gitattributes"}
            if revision is None and not own:
                raise

    def _info(self, revision: str | None) -> Any:
        return retry(lambda: self.api.model_info(self.repo_id, revision=revision), repeatable=True)

    def _commit(self, folder: Path, files: list[str], head: Any) -> str:
        """Makes the commit on top of `head`, so that it fails if somebody else has pushed in between."""
        # The trainer's own uploads during training leave its arguments, as a pickle.
        stale = stale_files([file.rfilename for file in head.siblings or []], files, ("training_args.bin",))
        operations: list[Any] = [
            *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files),
            *(CommitOperationDelete(path_in_repo=file) for file in stale),
        ]
        options = self.options

        def commit() -> str:
            done = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=options.commit_message,
                commit_description=options.commit_description,
                revision=options.revision,
                create_pr=options.create_pr,
                parent_commit=head.sha,
            )
            return str(done.pr_url or done.commit_url)

        try:
            return retry(commit, repeatable=False)
        except CLIENT_ERRORS as error:
            arrived = self._arrived(head.sha, error) if _is_lost(error) else None
            if arrived is None:
                raise
            return arrived

    def _arrived(self, parent: str, error: BaseException) -> str | None:
        """The address of this push's commit if it is on the branch after all, else None."""
        if self.options.create_pr:
            raise HubError(
                f"{explain(error, f'open a pull request of {self.repo_id!r} on the Hub')} Look on its page first "
                "whether it was opened all the same."
            ) from error
        branch = self.options.revision
        try:
            if self._info(branch).sha == parent:
                return None
            # The client itself is patient with this one.
            commits = self.api.list_repo_commits(self.repo_id, revision=branch)
        except CLIENT_ERRORS as second:
            raise HubError(
                f"{explain(error, f'push to {self.repo_id!r} on the Hub')} It could not be asked either whether the "
                f"commit arrived all the same: look at {self.api.endpoint}/{self.repo_id}/commits first.{self._undo()}"
            ) from second
        ids = [commit.commit_id for commit in commits[:2]]
        if ids[1:] == [parent] and commits[0].title == self.options.commit_message:
            return f"{self.api.endpoint}/{self.repo_id}/commit/{ids[0]}"
        return None

    def _undo(self) -> str:
        """Deletes what was created, the last first, and says what is left."""
        left = []
        while self.created:
            what, delete = self.created.pop()
            try:
                delete()
            except CLIENT_ERRORS as error:
                left.append(
                    f" The empty {what} that was created for it could not be deleted again: delete it on "
                    f"{self.api.endpoint}/{self.repo_id}/settings. ({explain(error, 'delete it')})"
                )
        return "".join(left)


def _is_lost(error: BaseException) -> bool:
    """Whether no answer came, or an error on its way, so that what was asked for may have been done."""
    return is_transient(error) and status_of(error) != 429
