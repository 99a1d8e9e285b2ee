"""From the Hub to a folder: a whole checkpoint of one commit, or an error and nothing half done."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from rgtg_logits.errors import CheckpointError
from rgtg_logits.hub.failures import CLIENT_ERRORS, explain, is_transient, retry
from rgtg_logits.hub.files import MODEL_FILES, PICKLES, PICKLES_ARE_REFUSED, TOKENIZER_FILES, matches

_CHUNK = 1 << 20


def fetch(
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

    All files are of one commit, even if somebody pushes in between. Each that was downloaded is compared with the hash
    that the repository lists. A branch is entered into the cache when its files are complete, so that what is loaded
    without a network is the last whole version. If the Hub cannot answer, that is used, with a warning.

    Args:
        name: A folder, which is returned as it is, or a Hub id.
        revision: Branch, tag or commit.
        token: Access token; by default that of HF_TOKEN or of the login.
        cache_dir: The cache, if not that of HF_HOME.
        force_download: Whether to download what the cache holds.
        local_files_only: Whether to use the cache alone, as HF_HUB_OFFLINE does for everything.
        subfolder: Where the checkpoint is in the repository or folder.

    Raises:
        CheckpointError: If there is no such repository or revision, it may not be seen, it holds pickled weights only,
            the Hub or the network failed, the disk is full, or a file is not what the repository lists.
    """
    if Path(name).exists():
        return Path(name, subfolder)
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    source = _Source(name, revision, token, cache_dir, prefix)
    try:
        info = None if local_files_only else source.ask()
        if info is None:
            return source.snapshot(revision, local_files_only=True) / subfolder
        return source.download(info, force=force_download) / subfolder
    except CLIENT_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(explain(error, f"download {name!r} from the Hub")) from error


class _Source:
    """A repository on the Hub, and its copy in the cache."""

    def __init__(
        self, name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, prefix: str
    ) -> None:
        self.name, self.revision, self.token, self.cache_dir, self.prefix = name, revision, token, cache_dir, prefix
        self.patterns = tuple(prefix + pattern for pattern in (*MODEL_FILES, *TOKENIZER_FILES))

    def snapshot(self, revision: str | None, **options: Any) -> Path:
        """The folder of a revision in the cache, filled unless `local_files_only`."""
        patterns = list(self.patterns)
        folder = snapshot_download(
            self.name, revision=revision, token=self.token, cache_dir=self.cache_dir, allow_patterns=patterns, **options
        )
        return Path(folder)

    def cached(self, file: str, revision: str | None) -> Path | None:
        """Where a file of a revision is in the cache."""
        found = try_to_load_from_cache(self.name, file, cache_dir=self.cache_dir, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def ask(self) -> Any:
        """What the Hub says of the repository; None if the cache has to do."""
        api = HfApi(token=self.token)
        try:
            return retry(
                lambda: api.model_info(self.name, revision=self.revision, files_metadata=True), repeatable=True
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
            said = explain(error, f"ask the Hub whether {self.name!r} has changed")
            warnings.warn(f"{said} Using {folder.name} from the cache, which may be out of date.", stacklevel=6)
            return None

    def download(self, info: Any, *, force: bool) -> Path:
        """The folder of the commit that the Hub told of, with what the cache lacked of it."""
        files = info.siblings or []
        self.refuse_pickles([file.rfilename for file in files])
        wanted = [file for file in files if matches(file.rfilename, self.patterns)]
        new = [file for file in wanted if force or self.cached(file.rfilename, info.sha) is None]
        if new or not wanted:
            folder = retry(lambda: self.snapshot(info.sha, force_download=force), repeatable=False)
            self.check_contents(folder, new)
        else:
            folder = self.snapshot(info.sha, local_files_only=True)
        names = [file.rfilename for file in wanted]
        if any(self.cached(name, self.revision) != self.cached(name, info.sha) for name in names):
            # Now that they are complete, the cache learns which commit the branch is at.
            self.snapshot(self.revision)
        return folder

    def refuse_pickles(self, files: list[str]) -> None:
        """Refuses a repository of pickles before anything is downloaded."""
        here = [file.removeprefix(self.prefix) for file in files if file.startswith(self.prefix)]
        pickles = sorted(file for file in here if matches(file, PICKLES))
        if pickles and not any(file.endswith(".safetensors") for file in here):
            raise CheckpointError(
                f"Expected {self.name!r} to hold its weights in safetensors, but it has pickled weights only "
                f"({', '.join(pickles)}). {PICKLES_ARE_REFUSED}"
            )

    def check_contents(self, folder: Path, new: list[Any]) -> None:
        """Compares downloaded files with the hashes that the repository lists."""
        wrong = [file.rfilename for file in new if not _is_listed(folder / file.rfilename, file)]
        for file in wrong:
            # The cache must not keep them, neither under their name nor under their hash.
            (folder / file).resolve().unlink()
            (folder / file).unlink(missing_ok=True)
        if wrong:
            raise CheckpointError(
                f"Expected the files of {self.name!r} to be those that the repository lists, but {', '.join(wrong)} "
                "came with another size or hash: cut off or changed on the way. They were deleted again. Try again; if "
                "that does not help, check HF_ENDPOINT and the proxy."
            )


def _is_listed(path: Path, file: Any) -> bool:
    """Whether a file has the size and hash of the listing (Git's for small ones, SHA-256 for large ones)."""
    size = path.stat().st_size
    if file.size is not None and file.size != size:
        return False
    if file.lfs is not None:
        return _digest(path, hashlib.sha256()) == file.lfs.sha256
    return file.blob_id is None or _digest(path, hashlib.sha1(f"blob {size}\0".encode())) == file.blob_id


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as content:
        while block := content.read(_CHUNK):
            digest.update(block)
    return str(digest.hexdigest())
