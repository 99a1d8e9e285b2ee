"""Download of a checkpoint into the Hub's cache: all files of one commit, or an error and nothing half done."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from rgtg_logits.errors import CheckpointError
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain, is_transient, retry
from rgtg_logits.hub.files import MODEL_FILES, PICKLES, PICKLES_ARE_REFUSED, TOKENIZER_FILES, matches


def download_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Path:
    """The folder of a checkpoint, downloaded into the Hub's cache if it is not there.

    All files are of one commit, even if somebody pushes in between. Each downloaded file is compared with the hash that
    the repository lists. A branch is entered into the cache when its files are complete, so that loading without a
    network finds the last complete version. That version is used, with a warning, if the Hub cannot answer.

    Args:
        name: A folder, which is returned as it is, or a Hub id.
        revision: Branch, tag or commit.
        token: Access token; by default that of HF_TOKEN or of the login.
        cache_dir: The cache, if not that of HF_HOME.
        force_download: Whether to download what the cache holds.
        local_files_only: Whether to use the cache alone, as HF_HUB_OFFLINE does for everything.
        subfolder: Where the checkpoint is in the repository or folder.

    Raises:
        CheckpointError: If there is no such repository or revision, the access token may not see it, it holds only
            pickled weights, the Hub or the network failed, the disk is full, or a file differs from the listing.
    """
    if Path(name).exists():
        return Path(name, subfolder)
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    repository = _CachedRepository(name, revision, token, cache_dir, prefix)
    try:
        info = None if local_files_only else repository.request_info()
        if info is None:
            return repository.snapshot(revision, local_files_only=True) / subfolder
        return repository.download(info, force=force_download) / subfolder
    except CLIENT_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(explain(error, f"download {name!r} from the Hub")) from error


class _CachedRepository:
    """A repository on the Hub together with its copy in the cache.

    Args:
        name: Its Hub id.
        revision: Branch, tag or commit.
        token: Access token.
        cache_dir: The cache, if not that of HF_HOME.
        prefix: Path of the checkpoint in the repository, with a slash at its end; empty for the root.
    """

    def __init__(
        self, name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, prefix: str
    ) -> None:
        self.name = name
        self.revision = revision
        self.token = token
        self.cache_dir = cache_dir
        self.prefix = prefix
        self.patterns = tuple(prefix + pattern for pattern in (*MODEL_FILES, *TOKENIZER_FILES))

    def snapshot(self, revision: str | None, **options: Any) -> Path:
        """The folder of a revision in the cache, filled unless `local_files_only`."""
        folder = snapshot_download(
            self.name,
            revision=revision,
            token=self.token,
            cache_dir=self.cache_dir,
            allow_patterns=list(self.patterns),
            **options,
        )
        return Path(folder)

    def cached_path(self, file: str, revision: str | None) -> Path | None:
        """Path in the cache of a file at a revision; None if it is not there."""
        path = try_to_load_from_cache(self.name, file, cache_dir=self.cache_dir, revision=revision)
        return Path(path) if isinstance(path, str) else None

    def request_info(self) -> Any:
        """Commit and file listing from the Hub; None if the cache has to do instead."""
        api = HfApi(token=self.token)
        try:
            return retry(
                lambda: api.model_info(self.name, revision=self.revision, files_metadata=True), idempotent=True
            )
        except OfflineModeIsEnabled:
            return None
        except CLIENT_ERRORS as error:
            if not is_transient(error):
                raise
            try:
                folder = self.snapshot(self.revision, local_files_only=True)
            except LocalEntryNotFoundError:
                raise error from None
            problem = explain(error, f"ask the Hub whether {self.name!r} has changed")
            warnings.warn(f"{problem} Using {folder.name} from the cache, which may be out of date.", stacklevel=6)
            return None

    def download(self, info: Any, *, force: bool) -> Path:
        """The folder of the listed commit, after the files that the cache lacks have been downloaded and verified."""
        listing = info.siblings or []
        self.refuse_pickles([file.rfilename for file in listing])
        files = [file for file in listing if matches(file.rfilename, self.patterns)]
        missing = [file for file in files if force or self.cached_path(file.rfilename, info.sha) is None]
        # Also if there is no file to download: only a download enters the commit into the cache.
        if missing or not files:
            folder = retry(lambda: self.snapshot(info.sha, force_download=force), idempotent=False)
            self.verify(folder, missing)
        else:
            folder = self.snapshot(info.sha, local_files_only=True)
        names = [file.rfilename for file in files]
        if any(self.cached_path(name, self.revision) != self.cached_path(name, info.sha) for name in names):
            # Only now, with complete files, the cache learns which commit the branch points to.
            self.snapshot(self.revision)
        return folder

    def refuse_pickles(self, files: list[str]) -> None:
        """Refuses a repository of pickles before anything is downloaded."""
        names = [file.removeprefix(self.prefix) for file in files if file.startswith(self.prefix)]
        pickles = sorted(name for name in names if matches(name, PICKLES))
        if pickles and not any(name.endswith(".safetensors") for name in names):
            raise CheckpointError(
                f"Expected {self.name!r} to hold its weights in safetensors, but it has pickled weights only "
                f"({', '.join(pickles)}). {PICKLES_ARE_REFUSED}"
            )

    def verify(self, folder: Path, listed: list[Any]) -> None:
        """Compares downloaded files with the hashes that the repository lists.

        `HfApi.verify_repo_checksums` is not used: clients before 1.0, which transformers 4.57 needs, lack it, and it
        lists the repository once more and hashes every file on every load.
        """
        damaged = [file.rfilename for file in listed if not _has_listed_hash(folder / file.rfilename, file)]
        for name in damaged:
            # The cache must not keep the file, neither under its name nor under its hash.
            (folder / name).resolve().unlink()
            (folder / name).unlink(missing_ok=True)
        if damaged:
            raise CheckpointError(
                f"Expected the files of {self.name!r} to be those that the repository lists, but {', '.join(damaged)} "
                "came with another size or hash: cut off or changed on the way. They were deleted again. Try again; if "
                "that does not help, check HF_ENDPOINT and the proxy."
            )


def _has_listed_hash(path: Path, listed: Any) -> bool:
    """Whether a file has the hash in the listing: Git's for small files, SHA-256 for large ones (LFS)."""
    with path.open("rb") as content:
        if listed.lfs is not None:
            return sha_fileobj(content).hex() == listed.lfs.sha256
        return listed.blob_id is None or git_hash(content.read()) == listed.blob_id
