"""Names for the parts of a step in a profiler's trace, and in Nsight's under `emit_nvtx`.

Without a profiler they cost a look at a flag: `record_function` itself takes about 6 us a call,
which a step of a thousand tensors cannot afford. What the extension's operators are named, a
profiler knows anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch.autograd import profiler

__all__ = ["named", "station"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NOTHING: AbstractContextManager[Any] = nullcontext()  # it keeps no state: one serves all


def named(name: str) -> AbstractContextManager[Any]:
    """A context that a running profiler shows as `soap_fast.<name>`."""
    # Set by torch.profiler.profile and by emit_nvtx, which turns ranges into those of NVTX.
    if not profiler._is_profiler_enabled:
        return NOTHING
    return profiler.record_function(f"soap_fast.{name}")


def station(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function whose calls are ranges of its name."""

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with named(function.__name__.removeprefix("_")):
            return function(*args, **kwargs)

    return called
