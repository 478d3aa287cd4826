"""`refresh`: first bases and refreshes of all factors of a model, against a loop over torch.linalg.

The factors have the sizes that the plan gives the model's parameters, and are those a training run
would bring: Gram matrices of normal gradients, with bases one drift behind them. The loop does
the same work factor by factor, as public optimizers do: product, order, `torch.linalg.qr` and the
carrying product for a refresh, `torch.linalg.eigh` for first bases. Both are timed in turn; ratios
are loop over ours.

`--phases` tells instead what a refreshing call does on a GPU beyond a plain step: for each phase of
the operator, and each launch that carries moments over, launches, gflop and predicted time on an
H100 (docs/cost.md), and on a GPU the time it took there. Row `all` is their sum.

`--ranks` tells what processes gain on the CPU that share a refresh, as `sharding="refresh"` has it.
Each has a core of its own and one thread, and they speak by gloo. In turn the first one refreshes
all factors while the others wait, and all of them share the same refresh: computing, sending and
receiving. Of those that share the slowest counts. Ratios are shared over alone; that of CPU time
holds on a machine that others use as well, since waiting is none of it. `samples` has the wall's
and the CPU's milliseconds of every repeat.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from bench import kernels, shapes
from bench.clock import samples
from bench.command import Row, common, positive, progress, show
from bench.cost import aot
from bench.costs import FLOAT, PLAN
from bench.files import BadInput
from soap_fast import extension
from soap_fast.backends.triton.products import KeptProducts, products_by
from soap_fast.distributed.sharing import Sharing
from soap_fast.step.eigh import eigh_eager, eigh_native
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh import Lent, lending, refresh_eager, refresh_native, refresh_times

COLUMNS = (
    "shapes", "op", "device", "factors", "largest", "threads", "refresh_ms", "refresh_ratio",
    "eigh_ms", "eigh_ratio", "ranks", "alone_ms", "shared_ms", "ratio", "cpu_ratio", "megabytes",
)  # fmt: skip
PHASE_COLUMNS = ("phase", "launches", "gflop", "predicted_us", "us", "predicted_ms")
OPS = {"native": (eigh_native, refresh_native), "eager": (eigh_eager, refresh_eager)}


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser, "--shapes", "--device", "--repeats", "--threads", repeats=5)
    parser.add_argument("--op", choices=OPS, default="native", help="default: %(default)s")
    other = parser.add_mutually_exclusive_group()
    what = "of the operator and of what follows it; needs no GPU"
    other.add_argument("--phases", action="store_true", help=what)
    what = "processes that share, against one alone"
    other.add_argument("--ranks", type=positive(int), help=what)


def run(options: argparse.Namespace) -> list[Row] | int:
    inventory = shapes.load(options.shapes)
    sizes = _sizes(inventory)
    if not sizes:
        raise BadInput(f"no parameter of {inventory.model} has a factor: name other --shapes")
    if options.phases:
        found = phases(inventory, options.device, options.repeats)
        show(found, PHASE_COLUMNS, options.json, "refresh --phases")
        return 0
    on_gpu = options.device.startswith("cuda") and options.ranks is None
    missing = extension.missing_cuda() if on_gpu else extension.reason()
    if options.op == "native" and missing:
        raise BadInput(f"--op native: {missing}; or take --op eager")
    about = {"shapes": inventory.model, "op": options.op, "factors": len(sizes)}
    if options.ranks is not None:
        return [about | by_ranks(inventory, options.op, options.ranks, options.repeats)]
    factors = Factors.of(inventory, options.device)
    eigh, refresh = OPS[options.op]
    pairs = {
        "refresh": (lambda: factors.refresh(refresh), factors.refresh_loop),
        "eigh": (lambda: eigh(factors.K, factors.chosen), factors.eigh_loop),
    }
    times: dict[str, list[float]] = {}
    for name, pair in progress(pairs.items(), "beside the loop", "operator"):
        both = samples(pair, options.device, options.repeats, factors.restore)
        of_ours, of_loop = ([1e3 * seconds for seconds in found] for found in both)
        times |= {f"{name}_ms": of_ours, f"{name}_loop_ms": of_loop}
    medians = {name: statistics.median(values) for name, values in times.items()}
    about |= {
        "device": options.device,
        "largest": max(sizes),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
    }
    ratios = {f"{name}_ratio": medians[f"{name}_loop_ms"] / medians[f"{name}_ms"] for name in pairs}
    return [about | medians | ratios | {"samples": times}]


def phases(inventory: shapes.Inventory, device: str, repeats: int) -> list[Row]:
    """A row for each phase of a refreshing call, and one of all."""
    if not extension.available():
        raise BadInput(f"--phases asks the extension for its plan: {extension.reason()}")
    aot.check_compiles()
    from bench.cost import refresh as predicted  # needs numpy, which a GPU's machine may lack

    rows = predicted.rows(inventory)
    if device.startswith("cuda"):
        operator: list[float] = []
        for each in predicted.in_rounds(inventory):
            elements = predicted.lent_to(inventory, each) // FLOAT
            lent = Lent(workspace=torch.empty(elements, device=device) if elements else None)
            operator += operator_times(Factors.of(each, device), lent, device, repeats)
        launched = kernels.launches(inventory, device, repeats)
        ours = (row for row in launched if row["name"] != "refresh_")
        carry = [row["us"] for row in ours if row["phase"] == "refresh"]
        rows = predicted.with_times(rows, predicted.plan_of(inventory), operator, carry)
    rows = predicted.together(rows)
    return [{**row, "shapes": inventory.model} for row in (*rows, predicted.total(rows))]


def operator_times(factors: Factors, lent: Lent, device: str, repeats: int) -> list[float]:
    """Median microseconds of each launch of the operator, products by our kernel as in a step."""
    launcher, found = kernels.TimingLauncher(device), []
    with products_by(launcher, "tf32x3", kept=KeptProducts()), lending(lent):
        for _ in range(repeats + 1):
            factors.restore()
            found.append(refresh_times(factors.K, factors.Q, factors.chosen, factors.allowed, 0.0))
    return [statistics.median(times) for times in zip(*found[1:], strict=True)]


def by_ranks(inventory: shapes.Inventory, op: str, ranks: int, repeats: int) -> Row:
    """One process beside several, each repeat after a barrier; the first repeat warms up."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < ranks:
        raise BadInput(f"--ranks {ranks}: each needs a core, and {len(cores)} are known")
    # By rank and repeat: alone and shared, the wall's milliseconds and the CPU's.
    times = torch.zeros(ranks, 1 + repeats, 2, 2, dtype=torch.float64).share_memory_()
    sent = torch.zeros(ranks, dtype=torch.float64).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        given = inventory, op, cores, f"{folder}/store", times, sent
        spawn(_rank, given, nprocs=ranks, daemon=True)
    alone, shared = times[:, 1:].amax(0).unbind(1)  # [repeats, 2] each
    (alone_ms, alone_cpu_ms), (shared_ms, shared_cpu_ms) = (
        side.quantile(0.5, 0).tolist() for side in (alone, shared)
    )
    return {
        "ranks": ranks,
        "alone_ms": alone_ms,
        "shared_ms": shared_ms,
        "ratio": shared_ms / alone_ms,
        "cpu_ratio": shared_cpu_ms / alone_cpu_ms,
        "megabytes": float(sent[0]) / 1e6,
        "samples": {"alone": alone.tolist(), "shared": shared.tolist()},
    }


def _rank(
    rank: int, inventory: shapes.Inventory, op: str, cores: Sequence[int], store: str,
    times: torch.Tensor, sent: torch.Tensor,
) -> None:  # fmt: skip
    """In a process of its own: write what this rank took and sent; alone is the first one only."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=len(times))
    group = dist.group.WORLD
    assert group is not None
    factors, sharing, refresh = Factors.of(inventory), Sharing(group), OPS[op][1]
    for of_repeat in times[rank]:
        for took, work in zip(of_repeat, (refresh, partial(sharing.refresh, refresh)), strict=True):
            factors.restore()
            dist.barrier()
            if rank == 0 or work is not refresh:
                start = _clocks()
                factors.refresh(work)
                took.copy_(1e3 * (_clocks() - start))
    sent[rank] = sharing.traffic[1]
    dist.barrier()
    dist.destroy_process_group()


def _clocks() -> torch.Tensor:
    """Seconds by the wall, and of the CPU by all threads of this process."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def _sizes(inventory: shapes.Inventory) -> list[int]:
    """Of all factors."""
    return [s for e in inventory.entries for s in plan_tensor(e.shape, PLAN).factors if s]


@dataclass
class Factors:
    """K and Q of all factors of a model, one stack [n, d, d] per size."""

    K: list[torch.Tensor]
    Q: list[torch.Tensor]  # what a refresh changes
    first_Q: list[torch.Tensor]
    chosen: list[torch.Tensor]  # all of them, [n] int32
    allowed: list[torch.Tensor]  # [n] bool

    @classmethod
    def of(cls, inventory: shapes.Inventory, device: str = "cpu") -> Factors:
        sizes = _sizes(inventory)
        counts = {size: sizes.count(size) for size in dict.fromkeys(sizes)}
        generator = torch.Generator().manual_seed(0)
        before, drift = (
            [_grams(n, d, generator).to(device) for d, n in counts.items()] for _ in range(2)
        )
        everything = [torch.arange(n, dtype=torch.int32).to(device) for n in counts.values()]
        # The bases a run has are those of its factors ten steps before: 0.95 ** 10 is 0.6.
        _, bases = eigh_eager(before, everything)
        factors = [0.6 * old + 0.4 * new for old, new in zip(before, drift, strict=True)]
        allowed = [chosen >= 0 for chosen in everything]
        return cls(factors, [q.clone() for q in bases], bases, everything, allowed)

    def refresh(self, op: Callable[..., object]) -> None:
        op(self.K, self.Q, self.chosen, self.allowed, 0.0)

    def restore(self) -> None:
        """Every refresh starts from the same bases; giving them back is none of its work."""
        self.Q = [q.clone() for q in self.first_Q]  # where it is shared, others take their places

    def refresh_loop(self) -> None:
        for factors, bases in zip(self.K, self.Q, strict=True):
            for k, q in zip(factors, bases, strict=True):
                kq = k @ q
                order = (q * kq).sum(0).argsort(descending=True)
                new = torch.linalg.qr(kq[:, order]).Q
                q.T @ new

    def eigh_loop(self) -> None:
        for factors in self.K:
            for k in factors:
                torch.linalg.eigh(k).eigenvectors.flip(1)


def _grams(n: int, d: int, generator: torch.Generator) -> torch.Tensor:  # [n, d, d]
    g = torch.randn(n, d, d + 8, generator=generator)
    return g @ g.mT / d
