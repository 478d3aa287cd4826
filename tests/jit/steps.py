"""Steps of every kind by the optimizer's own calls, whose launches go through Triton's JIT path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from streams import parameters, set_gradients, train
from stub_driver import MULTIPROCESSORS

from soap_fast import SOAP, extension
from soap_fast.backends.triton import products
from soap_fast.backends.triton.backend import Precision, TritonBackend
from soap_fast.backends.triton.launch.launcher import TritonLauncher
from soap_fast.step import capture
from soap_fast.step.grouped_matmul import grouped_matmul_as_tensors
from soap_fast.step.refresh import Refreshed, refresh_by_cholesky

# A folded mode, two of them joined, no product at all, a product at either end, and one whose Gram
# matrix is summed in parts. Of a staggered schedule some phases have an odd number of factors due.
SHAPES = ((6, 4, 3, 3), (5, 4, 5, 5), (5,), (), (8, 8), (33, 17), (40, 9000))
FREQUENCY = 4


class OnStub(TritonBackend):
    """Refreshes as on CUDA: by the extension's algorithm there, its products by our kernel."""

    def __init__(self, precision: Precision) -> None:
        super().__init__(precision, launcher=TritonLauncher(MULTIPROCESSORS))
        self.kept = products.KeptProducts()

    def refresh_op(
        self,
        factors: list[torch.Tensor],
        bases: list[torch.Tensor],
        selections: list[torch.Tensor],
        allowed: list[torch.Tensor],
        tolerance: float,
    ) -> Refreshed:
        arguments = factors, bases, selections, allowed
        if not extension.available():
            return super().refresh_op(*arguments, tolerance)
        launcher = self._launcher(factors[0].device)
        with products.products_by(launcher, self.input_precision, "cpu", kept=self.kept):
            return refresh_by_cholesky(*arguments, tolerance)


def _launched_and_computed(
    by: Any, memory: Any, groups: Any, launcher: Any, structure: int
) -> None:
    _launched(by, memory, groups, launcher, structure)
    grouped_matmul_as_tensors(memory, groups, structure)  # the refresh goes on with numbers


_launched = products.run
products.run = _launched_and_computed


def optimizer(
    dtype: torch.dtype = torch.float32,
    precision: Precision = "tf32x3",
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    **options: Any,
) -> tuple[SOAP, list[torch.nn.Parameter]]:
    """One whose every call after the first launches kernels, on tensors of the CPU."""
    options = {"precondition_frequency": FREQUENCY, "max_precond_dim": 64, **options}
    params = parameters(shapes, dtype)
    found = SOAP(params, backend="eager", lr=torch.tensor(1e-3), **options)
    found._backend = OnStub(precision)
    return found, params


@contextmanager
def capturing() -> Iterator[None]:
    """Within it a step is one that is captured in a CUDA graph."""
    before = capture.underway
    capture.underway = lambda: True
    try:
        yield
    finally:
        capture.underway = before


def captured(found: SOAP, params: list[torch.nn.Parameter], call: int) -> None:
    """A step into a graph, and its replay."""
    set_gradients(params, call)
    found.prepare_capture()
    with capturing():
        found.step()
    found.replayed()


def plain(dtype: torch.dtype, precision: Precision) -> None:
    train(*optimizer(dtype, precision), range(3))


def refreshing(dtype: torch.dtype, precision: Precision) -> None:
    train(*optimizer(dtype, precision), range(FREQUENCY + 2))


def staggered(dtype: torch.dtype, precision: Precision) -> None:
    train(*optimizer(dtype, precision, refresh_schedule="staggered"), range(2 * FREQUENCY + 1))


def captured_periodic(dtype: torch.dtype, precision: Precision) -> None:
    """One graph of a plain call, one of a call that refreshes."""
    found, params = optimizer(dtype, precision)
    train(found, params, range(FREQUENCY + 1))
    for call in range(FREQUENCY + 1, 2 * FREQUENCY + 1):
        captured(found, params, call)


def captured_staggered(dtype: torch.dtype, precision: Precision) -> None:
    found, params = optimizer(dtype, precision, refresh_schedule="staggered")
    train(found, params, range(FREQUENCY + 2))
    captured(found, params, FREQUENCY + 2)


def normalising(dtype: torch.dtype, precision: Precision) -> None:
    train(*optimizer(dtype, precision, normalize_grads=True), range(3))


KINDS = (plain, refreshing, staggered, captured_periodic, captured_staggered, normalising)
