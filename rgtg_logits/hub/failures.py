"""Failures of the Hub, the network and the disk: which requests are retried, and error messages with a remedy."""

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

_HTTP_ERRORS = [
    kind for kind in HfHubHTTPError.__mro__ if kind.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
]
TRANSPORT_ERROR: Any = _HTTP_ERRORS[-1]
"""Base class of the errors of any failed request: from `requests` in a client before 1.0, from `httpx` since."""
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (TRANSPORT_ERROR, ConnectionError, TimeoutError)
"""The latter two come from Xet, the client's other protocol for large files."""
CLIENT_ERRORS: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, TRANSPORT_ERROR)
"""Everything that the client raises on purpose, and what it lets through from disk and network.

A RuntimeError comes from the upload of a large file and has its reason as a cause.
"""

LONGEST_WAIT = 60
"""Seconds; a request is not made again if the Hub asks for a longer wait."""
_ATTEMPTS = 3
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to an access token"


def status_code(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer; None if there was no answer."""
    response = getattr(_root_cause(error), "response", None)
    return None if response is None else int(response.status_code)


def _root_cause(error: BaseException) -> BaseException:
    """The underlying error, where the client's own only reports that a large file or the cache failed."""
    is_wrapper = isinstance(error, (RuntimeError, LocalEntryNotFoundError))
    return error.__cause__ if is_wrapper and error.__cause__ is not None else error


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: after no answer, too many requests, or a fault of the Hub's own."""
    status = status_code(error)
    if status is None:
        return isinstance(_root_cause(error), _NETWORK_ERRORS) and not isinstance(error, OfflineModeIsEnabled)
    return status in (408, 429) or status >= 500


def retry_after(error: BaseException) -> int | None:
    """Seconds that the Hub asks to wait (header `Retry-After`, else `RateLimit`); None if it does not say."""
    response = getattr(_root_cause(error), "response", None)
    if response is None:
        return None
    headers = response.headers
    if str(headers.get("Retry-After", "")).isdigit():
        return int(headers["Retry-After"])
    if status_code(error) != 429:
        return None
    reset = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return int(reset[1]) if reset else None


def retry(request: Callable[[], T], *, idempotent: bool) -> T:
    """Makes a request up to three times where that is safe; the client itself repeats only a few of its requests.

    A request that was refused as one too many (429) has changed nothing, so it is made again when the Hub says, within
    a minute. Other requests are made again only if they are idempotent, after one and two seconds.

    Args:
        request: Makes the request.
        idempotent: Whether making it twice has the same effect as once.

    Returns:
        The result of `request`.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return request()
        except CLIENT_ERRORS as error:
            wait = retry_after(error) if status_code(error) == 429 else None
            if wait is None and idempotent and is_transient(error):
                wait = attempt
            if wait is None or wait > LONGEST_WAIT:
                raise
            logger.warning("The Hub did not answer (%s); asking again in %d s.", _one_line(error), wait)
            time.sleep(wait)
    return request()


def explain(error: BaseException, task: str) -> str:
    """A message with the task, the failure and the remedy.

    Args:
        error: An error of the client.
        task: The task, as it follows "Expected to": "push to 'org/name' on the Hub".
    """
    error = _root_cause(error)
    problem, remedy = _explain_without_answer(error) if status_code(error) is None else _explain_answer(error)
    return f"Expected to {task}, but {problem}. {remedy}"


_TRY_LATER = "Try again in a few minutes; https://status.huggingface.co says how it is."
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
    500: ("the Hub failed", _TRY_LATER),
}
"""Problem and remedy by kind of error or by HTTP status."""
_REFUSED = ("the Hub refused", "Correct what it says and try again.")


def _explain_answer(error: BaseException) -> tuple[str, str]:
    """Problem and remedy of an error with which the Hub answered."""
    status = status_code(error) or 0
    problem, remedy = _ANSWERS.get(min(status, 500), _REFUSED)
    # More exact than their status, 401, 403 or 404.
    for kind in (GatedRepoError, RevisionNotFoundError):
        if isinstance(error, kind):
            problem, remedy = _ANSWERS[kind]
    seconds = retry_after(error)
    wait = "a few minutes" if seconds is None else f"{seconds} seconds"
    return f"{problem} ({status}: {_one_line(error)})", remedy.format(wait=wait)


_FAILURES: tuple[tuple[Any, str, str], ...] = (
    (LocalTokenNotFoundError, "no access token was found", f"{_LOG_IN}."),
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids to ask it", "Unset it."),
    (
        LocalEntryNotFoundError,
        "it may not be asked (local_files_only or HF_HUB_OFFLINE), and the cache does not hold all of it: {detail}",
        "Load it once with a network, or check cache_dir, HF_HOME and the revision.",
    ),
    (HFValidationError, "that is no name of a repository: {detail}", "Give it as 'organisation/name' or 'user/name'."),
    (
        TRANSPORT_ERROR,
        "the connection failed or broke off: {detail}",
        "Check the network and HF_ENDPOINT, and try again.",
    ),
)
"""Problem and remedy by kind of error, for failures without an answer; the first match counts."""


def _explain_without_answer(error: BaseException) -> tuple[str, str]:
    """Problem and remedy of a failure on this side or on the network."""
    detail = _one_line(error)
    for kind, problem, remedy in _FAILURES:
        if isinstance(error, kind):
            return problem.format(detail=detail), remedy
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return (
            f"the disk is full ({detail})",
            "Free some space, or name a folder on another disk by cache_dir or HF_HOME.",
        )
    return f"that failed: {detail}", "Correct what it says and try again."


def _one_line(error: BaseException) -> str:
    """The server's own message if there is one, otherwise the error's, on one line."""
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(str(message).split()).rstrip(".")
