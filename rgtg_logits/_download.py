"""From the Hub to a folder: a whole checkpoint of one commit, or an error and nothing half done."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from rgtg_logits._folder import MODEL_FILES, PICKLES, PICKLES_ARE_REFUSED, TOKENIZER_FILES, matches
from rgtg_logits._hub_errors import CLIENT_ERRORS, explain, is_transient, patiently
from rgtg_logits.errors import CheckpointError

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
    patterns = [prefix + pattern for pattern in (*MODEL_FILES, *TOKENIZER_FILES)]
    place: dict[str, Any] = {"cache_dir": cache_dir, "allow_patterns": patterns}
    try:
        info = None if local_files_only else _ask(name, revision, token, place)
        if info is None:
            return Path(snapshot_download(name, revision=revision, local_files_only=True, **place), subfolder)
        _check_listing(name, [file.rfilename for file in info.siblings], prefix)
        place["token"] = token
        folder = _download(name, info, place, force_download=force_download)
        if revision != info.sha:
            # Now that they are complete, the cache learns which commit the branch is at.
            snapshot_download(name, revision=revision, **place)
        return folder / subfolder
    except CLIENT_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(explain(error, f"download {name!r} from the Hub")) from error


def _ask(name: str, revision: str | None, token: str | bool | None, place: dict[str, Any]) -> Any:
    """What the Hub says of the repository; None if the cache has to do."""
    api = HfApi(token=token)
    try:
        return patiently(lambda: api.model_info(name, revision=revision, files_metadata=True), repeatable=True)
    except OfflineModeIsEnabled:
        return None
    except CLIENT_ERRORS as error:
        if not is_transient(error):
            raise
        try:
            folder = snapshot_download(name, revision=revision, local_files_only=True, **place)
        except LocalEntryNotFoundError:
            raise error from None
        said = explain(error, f"ask the Hub whether {name!r} has changed")
        warnings.warn(f"{said} Using {Path(folder).name} from the cache, which may be out of date.", stacklevel=6)
        return None


def _check_listing(name: str, files: list[str], prefix: str) -> None:
    """Refuses repositories of pickles before anything is downloaded."""
    here = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    pickles = sorted(file for file in here if matches(file, PICKLES))
    if pickles and not any(file.endswith(".safetensors") for file in here):
        raise CheckpointError(
            f"Expected {name!r} to hold its weights in safetensors, but it has pickled weights only "
            f"({', '.join(pickles)}). {PICKLES_ARE_REFUSED}"
        )


def _download(name: str, info: Any, place: dict[str, Any], *, force_download: bool) -> Path:
    """Downloads what the cache lacks of a commit, and compares it with the hashes that the repository lists."""

    def is_cached(file: str) -> bool:
        found = try_to_load_from_cache(name, file, cache_dir=place["cache_dir"], revision=info.sha)
        return isinstance(found, str) and not force_download

    new = [file for file in info.siblings if not is_cached(file.rfilename)]
    folder = patiently(
        lambda: Path(snapshot_download(name, revision=info.sha, force_download=force_download, **place)),
        repeatable=False,
    )
    wrong = [file.rfilename for file in new if not _is_listed(folder / file.rfilename, file)]
    for file in wrong:
        # The cache must not keep them, neither under their name nor under their hash.
        (folder / file).resolve().unlink()
        (folder / file).unlink(missing_ok=True)
    if wrong:
        raise CheckpointError(
            f"Expected the files of {name!r} to be those that the repository lists, but {', '.join(wrong)} came with "
            "another size or hash: cut off or changed on the way. They were deleted again. Try again; if that does not "
            "help, check HF_ENDPOINT and the proxy."
        )
    return folder


def _is_listed(path: Path, file: Any) -> bool:
    """Whether a file has the size and hash of the listing (Git's for small ones, SHA-256 for large ones)."""
    if not path.exists():
        return True
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
