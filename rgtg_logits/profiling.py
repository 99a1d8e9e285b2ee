"""Named ranges in the timeline of `torch.profiler`: which part of guidance an operation belongs to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.profiler import record_function

PREFIX = "rgtg: "
"""Begins the name of every range of this library."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def profiled(part: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorator: calls of the function appear in `torch.profiler` as the range "rgtg: part".

    Without a profiler a call costs a fraction of a microsecond more.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            # Asked first, because record_function takes 7 µs even while nothing is recorded.
            if not torch._C._autograd._profiler_enabled():
                return function(*args, **kwargs)
            with record_function(PREFIX + part):
                return function(*args, **kwargs)

        return run

    return decorate
