"""`refresh`: first bases and refreshes of all factors of a model, against a loop over torch.linalg.

The factors have the sizes that the plan gives the model's parameters, and are those a training run
would bring: Gram matrices of normal gradients, with bases one drift behind them. The loop does
the same work factor by factor, as public optimizers do: product, order, `torch.linalg.qr` and the
carrying product for a refresh, `torch.linalg.eigh` for first bases. Both are timed in turn; ratios
are loop over ours.

`--phases` tells instead what a refreshing call does on a GPU beyond a plain step: for each phase of
the operator, and each launch that carries moments over, launches, gflop and predicted time on an
H100 (docs/cost.md), and on a GPU the time it took there. Row `all` is their sum.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import kernels, shapes
from bench.clock import Stopwatch
from bench.command import Row, common, progress, show
from bench.cost import aot
from bench.costs import PLAN
from bench.files import BadInput
from soap_fast import extension
from soap_fast.backends.triton.products import KeptProducts, products_by
from soap_fast.step.eigh import eigh_eager, eigh_native
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh import Lent, lending, refresh_eager, refresh_native, refresh_times

COLUMNS = (
    "shapes", "op", "device", "factors", "largest", "threads", "refresh_ms", "refresh_ratio",
    "eigh_ms", "eigh_ratio",
)  # fmt: skip
PHASE_COLUMNS = ("phase", "launches", "gflop", "predicted_us", "us", "predicted_ms")
OPS = {"native": (eigh_native, refresh_native), "eager": (eigh_eager, refresh_eager)}


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser, "--shapes", "--device", "--repeats", "--threads", repeats=5)
    parser.add_argument("--op", choices=OPS, default="native", help="default: %(default)s")
    what = "of the operator and of what follows it; needs no GPU"
    parser.add_argument("--phases", action="store_true", help=what)


def run(options: argparse.Namespace) -> list[Row] | int:
    if options.phases:
        found = phases(shapes.load(options.shapes), options.device, options.repeats)
        show(found, PHASE_COLUMNS, options.json, "refresh --phases")
        return 0
    if options.op == "native" and not extension.available():
        raise BadInput(f"--op native: {extension.reason()}")
    cuda = (extension.build_info() or {}).get("cuda")
    if options.op == "native" and options.device.startswith("cuda") and not cuda:
        raise BadInput("--op native: the extension was built without CUDA; take --op eager")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    inventory = shapes.load(options.shapes)
    factors = Factors.of(inventory, options.device)
    if not factors.K:
        raise BadInput(f"no parameter of {inventory.model} has a factor: name other --shapes")
    eigh, refresh = OPS[options.op]
    pairs = {
        "refresh": (lambda: factors.refresh(refresh), factors.refresh_loop),
        "eigh": (lambda: eigh(factors.K, factors.chosen), factors.eigh_loop),
    }
    samples: dict[str, list[float]] = {}
    for name, pair in pairs.items():
        both = interleaved(*pair, options.repeats, name, factors.restore, options.device)
        samples |= {f"{name}_ms": both[0], f"{name}_loop_ms": both[1]}
    medians = {name: statistics.median(values) for name, values in samples.items()}
    result = {
        "shapes": inventory.model,
        "op": options.op,
        "device": options.device,
        "factors": sum(len(stack) for stack in factors.K),
        "largest": max(stack.shape[1] for stack in factors.K),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
    }
    ratios = {f"{name}_ratio": medians[f"{name}_loop_ms"] / medians[f"{name}_ms"] for name in pairs}
    return [{**result, **medians, **ratios, "samples": samples}]


def phases(inventory: shapes.Inventory, device: str, repeats: int) -> list[Row]:
    """A row for each phase of a refreshing call, and one of all."""
    if not extension.available():
        raise BadInput(f"--phases asks the extension for its plan: {extension.reason()}")
    aot.check_compiles()
    from bench.cost import refresh as predicted  # needs numpy, which a GPU's machine may lack

    rows = predicted.rows(inventory)
    if not rows:
        raise BadInput(f"no parameter of {inventory.model} has a factor: name other --shapes")
    if device.startswith("cuda"):
        operator: list[float] = []
        for each in predicted.in_rounds(inventory):
            lent = torch.empty(predicted.lent_to(inventory, each), dtype=torch.uint8, device=device)
            factors, workspace = Factors.of(each, device), lent.view(torch.float32)
            operator += operator_times(factors, workspace, device, repeats)
        launched = kernels.launches(inventory, device, repeats)
        carry = [
            row["us"] for row in launched if row["phase"] == "refresh" and row["name"] != "refresh_"
        ]
        rows = predicted.with_times(rows, predicted.plan_of(inventory), operator, carry)
    rows = predicted.together(rows)
    return [{**row, "shapes": inventory.model} for row in (*rows, predicted.total(rows))]


def operator_times(
    factors: Factors, workspace: torch.Tensor, device: str, repeats: int
) -> list[float]:
    """Median microseconds of each launch of the operator, products by our kernel as in a step.

    Args:
        workspace: that a step lends, or of no elements.
    """
    launcher, found = kernels.TimingLauncher(device), []
    lent = Lent(workspace=workspace if len(workspace) else None)
    with products_by(launcher, "tf32x3", kept=KeptProducts()), lending(lent):
        for _ in range(repeats + 1):
            factors.restore()
            found.append(refresh_times(factors.K, factors.Q, factors.chosen, factors.allowed, 0.0))
    return [statistics.median(times) for times in zip(*found[1:], strict=True)]


def interleaved(
    one: Callable[[], object],
    other: Callable[[], object],
    repeats: int,
    what: str,
    before: Callable[[], object] = lambda: None,
    device: str = "cpu",
) -> list[list[float]]:
    """Milliseconds of each of two, run in turn after a warm-up; `before` is not timed."""
    watches = Stopwatch(device), Stopwatch(device)
    for _ in progress(range(repeats + 1), what, "pair"):
        for watch, work in zip(watches, (one, other), strict=True):
            before()
            watch(work)
    return [[1e3 * seconds for seconds in watch.seconds()[1:]] for watch in watches]


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
        sizes = [s for e in inventory.entries for s in plan_tensor(e.shape, PLAN).factors if s]
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
        for q, first in zip(self.Q, self.first_Q, strict=True):
            q.copy_(first)

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
