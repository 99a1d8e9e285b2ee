"""A lock that objects can hold and still be copied and pickled."""

from __future__ import annotations

from threading import RLock
from types import TracebackType


class ObjectLock:
    """A reentrant lock of one object; its copies, in other processes too, have locks of their own."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[ObjectLock], tuple[()]]:
        return ObjectLock, ()
