"""What the Hub answers when it does not do what was asked: how long to wait for it, and in words what to do."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSPORT_ERROR: Any = next(
    kind
    for kind in reversed(HfHubHTTPError.__mro__)
    if kind.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
)
"""What any failed request raises: of `requests` in a client before 1.0, and of `httpx` or its successor after."""
_NETWORK: tuple[type[BaseException], ...] = (TRANSPORT_ERROR, ConnectionError, TimeoutError)
"""The latter two come from the client's other way of moving large files (Xet)."""
CLIENT_ERRORS: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, TRANSPORT_ERROR)
"""Everything that the client raises on purpose, and what it lets through from disk and network.

A RuntimeError comes from the upload of a large file and has its reason as a cause.
"""

LONGEST_WAIT = 60
"""Seconds. A Hub that asks for more patience than that is not waited for."""
_ATTEMPTS = 3
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to an access token"


def status_of(error: BaseException) -> int | None:
    """The status with which the Hub answered; None if it did not."""
    response = getattr(_reason(error), "response", None)
    return None if response is None else int(response.status_code)


def _reason(error: BaseException) -> BaseException:
    """What the client's own error is about, where it only says that a large file or the cache did not do."""
    wraps = isinstance(error, (RuntimeError, LocalEntryNotFoundError))
    return error.__cause__ if wraps and error.__cause__ is not None else error


def is_transient(error: BaseException) -> bool:
    """Whether the same request may go well in a moment: no answer, too many requests, or a fault of the Hub's own."""
    status = status_of(error)
    if status is None:
        return isinstance(_reason(error), _NETWORK) and not isinstance(error, OfflineModeIsEnabled)
    return status in (408, 429) or status >= 500


def retry_after(error: BaseException) -> int | None:
    """Seconds after which the Hub says that it will answer again, if it does (`Retry-After`, else `RateLimit`)."""
    response = getattr(_reason(error), "response", None)
    headers = {} if response is None else response.headers
    if str(headers.get("Retry-After", "")).isdigit():
        return int(headers["Retry-After"])
    reset = re.search(r"\bt=(\d+)", headers.get("RateLimit", "")) if status_of(error) == 429 else None
    return int(reset[1]) if reset else None


def retry(ask: Callable[[], T], *, repeatable: bool) -> T:
    """Asks again where that is safe, up to three times; the client itself repeats but a few of its requests.

    A request that was refused as one too many (429) has changed nothing, so it is made again when the Hub says, within
    a minute. Others are only if they are `repeatable`, after one and two seconds.

    Args:
        ask: Makes the request.
        repeatable: Whether making it twice is as good as once.

    Returns:
        What `ask` returns.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return ask()
        except CLIENT_ERRORS as error:
            wait = retry_after(error) if status_of(error) == 429 else None
            if wait is None and repeatable and is_transient(error):
                wait = attempt
            if wait is None or wait > LONGEST_WAIT:
                raise
            logger.warning("The Hub did not answer (%s); asking again in %d s.", _shortly(error), wait)
            time.sleep(wait)
    return ask()


def explain(error: BaseException, task: str) -> str:
    """One message of what was asked of the Hub, what it did and what to do.

    Args:
        error: What the client raised.
        task: What was asked, as it follows "Expected to": "push to 'org/name' on the Hub".
    """
    error = _reason(error)
    what, cure = _answered(error) if status_of(error) is not None else _unanswered(error)
    return f"Expected to {task}, but {what}. {cure}"


_LATER = "Try again in a few minutes; https://status.huggingface.co says how it is."
_ANSWERS: dict[int | type[BaseException], tuple[str, str]] = {
    GatedRepoError: ("access to it is gated", f"Ask for access on its page. Then: {_LOG_IN} of that account."),
    RevisionNotFoundError: ("it has no such branch, tag or commit", "Check the revision."),
    401: (
        "the repository does not exist, or there is no valid access token for it",
        f"Check the name. {_LOG_IN} that may see it, with write permission for a push.",
    ),
    403: (
        "the access token may not do that",
        f"{_LOG_IN} that may, for a push with write permission for that namespace.",
    ),
    404: (
        "there is no such repository, or the access token may not see it",
        f"Check the name. If it is private: {_LOG_IN} that may see it.",
    ),
    409: (
        "it was changed at the same time, or the name is taken by a repository that the access token may not see",
        "Push again, or under another name.",
    ),
    412: ("somebody else pushed at the same time", "Push again."),
    429: ("there were too many requests", "Wait {wait}, then try again."),
    500: ("the Hub failed", _LATER),
}
"""What an answer means and what to do, by kind of error or by status."""


def _answered(error: BaseException) -> tuple[str, str]:
    """What the Hub said, and the cure."""
    status = status_of(error) or 0
    kinds = [kind for kind in (GatedRepoError, RevisionNotFoundError) if isinstance(error, kind)]
    refused = ("the Hub refused", "Correct what it says and try again.")
    what, cure = _ANSWERS.get(kinds[0] if kinds else 500 if status >= 500 else status, refused)
    seconds = retry_after(error)
    wait = "a few minutes" if seconds is None else f"{seconds} seconds"
    return f"{what} ({status}: {_shortly(error)})", cure.format(wait=wait)


_FAILURES: tuple[tuple[Any, str, str], ...] = (
    (LocalTokenNotFoundError, "no access token was found", f"{_LOG_IN}."),
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids to ask it", "Unset it."),
    (
        LocalEntryNotFoundError,
        "it may not be asked (local_files_only or HF_HUB_OFFLINE), and the cache does not hold all of it: {said}",
        "Load it once with a network, or check cache_dir, HF_HOME and the revision.",
    ),
    (HFValidationError, "that is no name of a repository: {said}", "Give it as 'organisation/name' or 'user/name'."),
    (
        TRANSPORT_ERROR,
        "the connection failed or broke off: {said}",
        "Check the network and HF_ENDPOINT, and try again.",
    ),
)
"""What failed without an answer and what to do, by kind of error; the first that fits counts."""


def _unanswered(error: BaseException) -> tuple[str, str]:
    """What went wrong on this side or on the way, and the cure."""
    said = _shortly(error)
    for kind, what, cure in _FAILURES:
        if isinstance(error, kind):
            return what.format(said=said), cure
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return (
            f"the disk is full ({said})",
            "Free some space, or name a folder on another disk by cache_dir or HF_HOME.",
        )
    return f"that failed: {said}", "Correct what it says and try again."


def _shortly(error: BaseException) -> str:
    """The server's own message, else the error in one line."""
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(str(said).split()).rstrip(".")
