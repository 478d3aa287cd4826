"""Every op on every class of shapes by every backend that has it; see bench/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.suite.cases import CAPTURED, Case, cases, prepare
from bench.suite.roofs import precision, roofs
from bench.suite.timer import event_timer, replay
from soap_fast.backends import survey

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
STATUS = {status.name: status for status in survey()}


def parameters() -> Iterator[Any]:
    for case in cases(DEVICES):
        status = STATUS[case.backend]
        timer = {"timer": event_timer()} if case.device == "cuda" else {}
        marks = (
            pytest.mark.skipif(not status.usable, reason=status.reason),
            pytest.mark.benchmark(group=case.group, **timer),
        )
        yield pytest.param(case, id=case.id, marks=marks)


@pytest.mark.parametrize("case", list(parameters()))
def test_op(case: Case, benchmark: Any) -> None:
    call, work = prepare(case)
    if case.device == "cuda" and case.op in CAPTURED:
        call = replay(call)
    benchmark(call)
    told = {
        "op": case.op,
        "shapes": case.shapes,
        "backend": case.backend,
        "device": case.device,
        "flops": work.flops,
        "bytes": work.bytes,
        "launches": work.launches,
    }
    benchmark.extra_info.update(told)
    if benchmark.stats is not None:  # None under --benchmark-disable: called once, not timed
        found, median = roofs(case.device), benchmark.stats.stats.median
        of = precision(case.backend, case.device)
        benchmark.extra_info.update(
            roof_flops_per_second=found.gemm[of],
            roof_precision=of,
            roof_bytes_per_second=found.copy,
            share_of_roof=found.least_seconds(work.flops, work.bytes, of) / median,
        )
