"""`roof`: what this machine can do at most: copies, products by precision, cost of a call.

`copy` counts bytes read and written; `gemm_*` are square products by torch with its float32 matmul
precision set accordingly; `host_call` is what the host pays for a call of a torch operator. On
CUDA, `launch` is the time from one launch to the next and `graph_replay` the same in a CUDA graph;
`gemm_tf32x3` is a third of `gemm_tf32`. `value` is the best sample: other work only slows down.
Roofs are measured, never read from a data sheet.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from bench.clock import captured, samples, synchronize
from bench.command import Row, common, positive, progress

CALLS = 500  # per sample: one takes a microsecond or ten, and a queue holds 1000
# By kind of device: bytes that are copied, more than the caches hold, and n of products of [n, n].
DEFAULT_SIZES = {"cpu": (2**28, 2048), "cuda": (2**30, 8192)}
UNITS = {"GB/s": 1e9, "GFLOP/s": 1e9, "us": 1e-6}
# By name of a roof: dtype, and torch's float32 matmul precision.
PRECISIONS = {
    "gemm_float32": (torch.float32, "highest"),
    "gemm_tf32": (torch.float32, "high"),  # on CUDA alone
    "gemm_bfloat16": (torch.bfloat16, None),
}
COLUMNS = ("roof", "value", "unit", "median", "what")


class Roofs(NamedTuple):
    """Bytes and floating point operations per second, the latter by name of a precision."""

    copy: float
    gemm: dict[str, float]

    def least_seconds(self, flops: float, moved: float, precision: str) -> float:
        """The least time that so many operations and bytes take under these roofs."""
        return max(flops / self.gemm[precision], moved / self.copy)

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> Roofs:
        """Of several measurements of a roof the highest: other work only lowers it."""
        values = {"copy": 0.0}
        for row in sorted(rows, key=lambda row: row["value"]):
            values[row["roof"]] = row["value"] * UNITS[row["unit"]]
        gemm = {n.removeprefix("gemm_"): v for n, v in values.items() if n.startswith("gemm_")}
        return cls(values["copy"], gemm)


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser, "--device", "--repeats", "--threads")
    parser.add_argument("--size", type=positive(int), help="n of products of [n, n]")
    parser.add_argument("--copy-mib", type=positive(int), help="size of the copy's source")


def run(options: argparse.Namespace) -> list[Row]:
    copied = None if options.copy_mib is None else options.copy_mib * 2**20
    rows = measure(options.device, copied, options.size, options.repeats)
    more = {"device": options.device, "threads": torch.get_num_threads()}
    return [row | more for row in rows]


def measure(
    device: str, copied: int | None = None, size: int | None = None, repeats: int = 7
) -> list[Row]:
    """Every roof of a device, a row each: `value` is the best of the samples, `median` theirs."""
    kind = torch.device(device).type
    usual = DEFAULT_SIZES[kind]
    products = [
        gemm_row(name, device, size or usual[1], repeats)
        for name in progress(PRECISIONS, "products", "roof")
        if kind == "cuda" or name != "gemm_tf32"
    ]
    copy = copy_row(device, copied or usual[0], repeats)
    return [copy, *products, *call_rows(device, repeats), *derived(products)]


def _row(roof: str, unit: str, amount: float, seconds: list[float], what: str) -> Row:
    """So much in each of these times: a rate, or microseconds of one of so many calls."""
    times = min(seconds), statistics.median(seconds)
    best, median = (1e6 * t / amount if unit == "us" else amount / t / UNITS[unit] for t in times)
    return {"roof": roof, "value": best, "unit": unit, "median": median, "what": what}


def copy_row(device: str, size: int, repeats: int) -> Row:
    """Bytes read and written per second by one large copy."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    (times,) = samples([lambda: target.copy_(source)], device, repeats)
    what = f"{size / 2**20:.0f} MiB, read + written"
    return _row("copy", "GB/s", 2 * source.nbytes, times, what)


def gemm_row(name: str, device: str, size: int, repeats: int) -> Row:
    """Operations per second of a product of two [size, size], into memory that is there."""
    dtype, precision = PRECISIONS[name]
    a, b = torch.randn(2, size, size, device=device).to(dtype)  # [size, size] each
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        (times,) = samples([lambda: torch.mm(a, b, out=out)], device, repeats)
    finally:
        torch.set_float32_matmul_precision(before)
    return _row(name, "GFLOP/s", 2 * size**3, times, f"torch.mm of [{size}, {size}], {dtype}")


def derived(rows: list[Row]) -> Iterator[Row]:
    """tf32x3 makes one float32 product of three tf32 ones; nothing else multiplies so here."""
    for row in rows:
        if row["roof"] == "gemm_tf32":
            third = {"value": row["value"] / 3, "median": row["median"] / 3}
            yield {**row, **third, "roof": "gemm_tf32x3", "what": "a third of gemm_tf32"}


def call_rows(device: str, repeats: int) -> Iterator[Row]:
    """What a call of a torch operator costs: on the host, between launches, and within a graph."""
    one, out = torch.ones(1, device=device), torch.empty(1, device=device)

    def calls() -> None:
        for _ in range(CALLS):
            torch.neg(one, out=out)

    what = "torch.neg of one element"
    # By the host's clock, each sample from an empty queue: a full one would be waited for.
    (times,) = samples([calls], "cpu", repeats, before=lambda: synchronize(device))
    yield _row("host_call", "us", CALLS, times, what)
    if torch.device(device).type == "cuda":
        launched, replayed = samples([calls, captured(calls)], device, repeats)
        yield _row("launch", "us", CALLS, launched, f"{what}, in a row")
        within = f"{what}, as one of {CALLS} nodes of a CUDA graph"
        yield _row("graph_replay", "us", CALLS, replayed, within)
