"""Functions that remember their results, and can be copied and pickled."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """A function that remembers its last results; a copy, in another process too, starts without them.

    Args:
        function: A function of hashable arguments. As a method of an object that is copied, it becomes the copy's.
        maxsize: Number of results to remember; the least recently used are forgotten first.
    """

    def __init__(self, function: Callable[..., Result], maxsize: int) -> None:
        self._function = function
        self._maxsize = maxsize
        self._cached = lru_cache(maxsize=maxsize)(function)

    def __call__(self, *args: Hashable) -> Result:
        """Calls the function, unless its result is remembered."""
        return self._cached(*args)

    def cache_info(self) -> Any:
        """Hits, misses and size of the memory, as of `functools.lru_cache`."""
        return self._cached.cache_info()

    def __reduce__(self) -> tuple[type, tuple[Callable[..., Result], int]]:
        return type(self), (self._function, self._maxsize)
