"""What this machine can do at most: copies, products by precision, and the cost of a call.

Roofs are measured, never read from a data sheet. Other work on a machine can only slow a roof
down, so the fastest of several repeats counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.command import Row
from bench.measuring.clock import replayed, samples, synchronize
from bench.output.progress import progress

CALLS = 500  # per sample: one takes a microsecond or ten, and a queue holds 1000


class Sizes(NamedTuple):
    """What is measured on.

    Attributes:
        copied: bytes of the source of a copy; more than the caches hold.
        product: n of a product of two [n, n].
    """

    copied: int
    product: int


DEFAULT_SIZES = {"cpu": Sizes(2**28, 2048), "cuda": Sizes(2**30, 8192)}


class Roofs(NamedTuple):
    """Bytes and floating point operations per second, the latter by name of a precision."""

    copy: float
    gemm: dict[str, float]

    def least_seconds(self, flops: float, moved: float, precision: str) -> float:
        """The least time that so many operations and bytes take under these roofs."""
        return max(flops / self.gemm[precision], moved / self.copy)

    @classmethod
    def of_rows(cls, rows: list[Row]) -> Roofs:
        values = {row["roof"]: row["value"] * UNITS[row["unit"]] for row in rows}
        gemm = {n.removeprefix("gemm_"): v for n, v in values.items() if n.startswith("gemm_")}
        return cls(values["copy"], gemm)


UNITS = {"GB/s": 1e9, "GFLOP/s": 1e9, "us": 1e-6}


def measure(device: str, sizes: Sizes | None = None, repeats: int = 7) -> list[Row]:
    """Every roof of a device, a row each: `value` is the best of the samples, `median` theirs."""
    kind = torch.device(device).type
    sizes = sizes or DEFAULT_SIZES[kind]
    work: dict[str, Callable[[], Row]] = {
        "copy": partial(copy_row, device, sizes.copied, repeats),
    }
    for name in PRECISIONS[kind]:
        work[name] = partial(gemm_row, name, device, sizes.product, repeats)
    work["host_call"] = partial(host_row, device, repeats)
    if kind == "cuda":
        work["launch"] = partial(launch_row, device, repeats)
        work["graph_replay"] = partial(replay_row, repeats)
    rows = [work[name]() for name in progress(list(work), "roofs", "roof")]
    return [*rows, *derived(rows)]


def _row(roof: str, unit: str, best: float, median: float, what: str, **more: Any) -> Row:
    return {"roof": roof, "value": best, "unit": unit, "median": median, **more, "what": what}


def _rate(roof: str, unit: str, amount: float, seconds: list[float], what: str) -> Row:
    """A row of a rate: `amount` over the shortest and over the median time."""
    ordered = sorted(seconds)
    scale = UNITS[unit]
    best, median = (amount / time / scale for time in (ordered[0], ordered[len(ordered) // 2]))
    return _row(roof, unit, best, median, what)


def copy_row(device: str, size: int, repeats: int) -> Row:
    """Bytes read and written per second by one large copy."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = samples(lambda: target.copy_(source), device, repeats)
    return _rate(
        "copy", "GB/s", 2 * source.nbytes, times, f"{size / 2**20:.0f} MiB, read + written"
    )


# By kind of device and name of a roof: dtype, and torch's float32 matmul precision.
PRECISIONS = {
    "cpu": {"gemm_float32": (torch.float32, "highest"), "gemm_bfloat16": (torch.bfloat16, None)},
    "cuda": {
        "gemm_float32": (torch.float32, "highest"),
        "gemm_tf32": (torch.float32, "high"),
        "gemm_bfloat16": (torch.bfloat16, None),
    },
}


def gemm_row(name: str, device: str, size: int, repeats: int) -> Row:
    """Operations per second of a product of two [size, size], into memory that is there."""
    dtype, precision = PRECISIONS[torch.device(device).type][name]
    a, b = torch.randn(2, size, size, device=device).to(dtype)  # [size, size] each
    out = torch.empty_like(a)
    with matmul_precision(precision):
        times = samples(lambda: torch.mm(a, b, out=out), device, repeats)
    return _rate(name, "GFLOP/s", 2 * size**3, times, f"torch.mm of [{size}, {size}], {dtype}")


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """torch's setting for float32 products, and afterwards what it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def derived(rows: list[Row]) -> Iterator[Row]:
    """tf32x3 makes one float32 product of three tf32 ones; nothing else multiplies so here."""
    for row in rows:
        if row["roof"] == "gemm_tf32":
            third = {"value": row["value"] / 3, "median": row["median"] / 3}
            yield {**row, **third, "roof": "gemm_tf32x3", "what": "a third of gemm_tf32"}


def _latency(roof: str, seconds: list[float], what: str) -> Row:
    ordered = sorted(seconds)
    return _row(roof, "us", 1e6 * ordered[0], 1e6 * ordered[len(ordered) // 2], what)


def host_row(device: str, repeats: int) -> Row:
    """What the host pays for one call of a torch operator; on CUDA nothing waits for the GPU."""
    # By the host's clock, each sample from an empty queue: a full one would be waited for.
    calls = _calls(device)
    times = samples(calls, "cpu", repeats, before=lambda: synchronize(device))
    return _latency("host_call", [t / CALLS for t in times], "torch.neg of one element")


def launch_row(device: str, repeats: int) -> Row:
    """From one launch to the next, by events."""
    times = samples(_calls(device), device, repeats)
    return _latency("launch", [t / CALLS for t in times], "torch.neg of one element, in a row")


def _calls(device: str) -> Callable[[], None]:
    one, out = torch.ones(1, device=device), torch.empty(1, device=device)

    def calls() -> None:
        for _ in range(CALLS):
            torch.neg(one, out=out)

    return calls


def replay_row(repeats: int) -> Row:
    """The same inside a CUDA graph."""
    one, out = torch.ones(1, device="cuda"), torch.empty(1, device="cuda")
    times = replayed(lambda: torch.neg(one, out=out), calls=1000, repeats=repeats)
    return _latency("graph_replay", times, "torch.neg as one of 1000 nodes of a CUDA graph")
