"""One test on a GPU and, Triton's kernels interpreted, on the CPU: streams and graphs as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from streams import needs_interpreter, needs_native

from soap_fast import SOAP, GraphedStep, extension
from soap_fast.backends.triton.engine import Engine
from soap_fast.step import capture
from soap_fast.triton_kernels.columns import SCALARS

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
ON_GPU = (pytest.mark.gpu, NO_GPU)
NO_CUDA_BUILD = pytest.mark.skipif(
    not (extension.build_info() or {}).get("cuda"), reason="the extension was built without CUDA"
)
# The extension's operators, which need no interpreter on the CPU.
OPERATORS_ON_GPU = pytest.param("cuda", marks=[*ON_GPU, NO_CUDA_BUILD])
operators_on_gpu = pytest.mark.parametrize("device", [OPERATORS_ON_GPU])
operators_on_both = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=needs_native), OPERATORS_ON_GPU]
)


def on_cpu(*values: Any) -> Any:
    """A case of a test, its device first; CI runs these."""
    return pytest.param("cpu", *values, marks=needs_interpreter)


def on_gpu(*values: Any) -> Any:
    return pytest.param("cuda", *values, marks=ON_GPU)


DEVICES = [on_cpu(), on_gpu()]


class RunAgain:
    """A CUDA graph's stand-in on the CPU: at every replay the captured step runs, as captured."""

    def __init__(self, step: GraphedStep) -> None:
        self.step = step

    def replay(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(capture, "underway", lambda: True)
            self.step._call()


class OnCpu(GraphedStep):
    """Decides as a GraphedStep does what is captured and replayed when."""

    def _on_side_stream(self) -> Any:
        return self._call()

    def _capture(self, refreshes: bool) -> None:
        self._graphs[refreshes] = RunAgain(self)
        self._results[refreshes] = None


def graphed(optimizer: SOAP, device: str, body: Callable[[], Any] | None = None) -> GraphedStep:
    return (GraphedStep if device == "cuda" else OnCpu)(optimizer, body)


class Streams:
    """Two streams in turns, on a GPU; at every third turn the stream sleeps first.

    What comes at the next turn, on the other stream, is then launched while the sleeper has not yet
    begun with what it was given: who does not wait for it is early.
    """

    SLEEP = 20_000_000  # cycles, 10 ms at 2 GHz

    def __init__(self, device: str) -> None:
        on_gpu = device == "cuda"
        self.streams = [torch.cuda.Stream(), torch.cuda.Stream()] if on_gpu else []

    def turn(self, number: int) -> AbstractContextManager[None]:
        return self._on_stream(number) if self.streams else nullcontext()

    @contextmanager
    def _on_stream(self, number: int) -> Iterator[None]:
        with torch.cuda.stream(self.streams[number % 2]):
            if number % 3 == 0:
                torch.cuda._sleep(self.SLEEP)
            yield


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def engine_of(optimizer: SOAP) -> Engine:
    """The one that a step on one device has made."""
    (engine,) = optimizer._backend.engines.values()
    return engine


def forget_workspace(engine: Engine) -> None:
    """NaN in all that a step must write before it reads it."""
    memory = engine.memory
    for found in (memory.a, memory.b, memory.gram_partials, engine.squares, engine.directions):
        found.fill_(float("nan"))
    for decided in (memory.scalars, memory.carried):
        decided.view(-1, len(SCALARS))[:-1].fill_(float("nan"))  # the last row stays zero
