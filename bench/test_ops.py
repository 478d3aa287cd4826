"""Every op on every class of shapes by every backend that has it; see bench/conftest.py."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.cases import CAPTURED, Case, cases, cost, prepare
from bench.clock import captured
from bench.roof import DEFAULT_SIZES, Roofs, copy_row, derived, gemm_row
from soap_fast.backends import survey

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
STATUS = {status.name: status for status in survey()}
REPEATS = 7  # of a roof


def device_time() -> float:
    """In place of the plugin's timer: also the work that the GPU still has to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def parameters() -> Iterator[Any]:
    for case in cases(DEVICES):
        status = STATUS[case.backend]
        timer = {"timer": device_time} if case.device == "cuda" else {}
        # Cases that do the same stand side by side in the plugin's table.
        group = f"{case.op} {case.shapes} {case.device}"
        marks = (
            pytest.mark.skipif(not status.usable, reason=status.reason),
            pytest.mark.benchmark(group=group, **timer),
        )
        yield pytest.param(case, id="-".join(case), marks=marks)


@pytest.mark.parametrize("case", list(parameters()))
def test_op(case: Case, benchmark: Any) -> None:
    call, work = prepare(case), cost(case)
    if case.device == "cuda" and case.op in CAPTURED:
        call = captured(call)
    benchmark(call)
    benchmark.extra_info.update(case._asdict() | work._asdict())
    if benchmark.stats is not None:  # None under --benchmark-disable: called once, not timed
        found, median = roofs(case.device), benchmark.stats.stats.median
        of = precision(case.backend, case.device)
        benchmark.extra_info.update(
            roof_flops_per_second=found.gemm[of],
            roof_precision=of,
            roof_bytes_per_second=found.copy,
            share_of_roof=found.least_seconds(work.flops, work.bytes, of) / median,
        )


@functools.cache
def roofs(device: str) -> Roofs:
    """Of a copy and of float32 products, measured once a session and only if something is timed."""
    copied, size = DEFAULT_SIZES[torch.device(device).type]
    names = ["gemm_float32", *(["gemm_tf32"] if device.startswith("cuda") else [])]
    products = [gemm_row(name, device, size, REPEATS) for name in names]
    return Roofs.of_rows([copy_row(device, copied, REPEATS), *products, *derived(products)])


def precision(backend: str, device: str) -> str:
    """The roof of a backend's products: on CUDA, Triton makes each of three in tf32."""
    return "tf32x3" if backend == "triton" and device.startswith("cuda") else "float32"
