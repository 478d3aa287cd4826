"""What the steps of an optimizer consist of, as tables for people: tensors, launches, costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from soap_fast import extension
from soap_fast.backends import survey
from soap_fast.backends.triton.launch.floor import BYTES_PER_SECOND, FLOPS_PER_SECOND, floor_seconds
from soap_fast.backends.triton.programs import plain_step
from soap_fast.backends.triton.rounds import WORKSPACE
from soap_fast.backends.triton.served import unserved
from soap_fast.distributed.planner import Planned, SharingPlan, plan_sharing
from soap_fast.inspect.memory import Peak, peak_of
from soap_fast.inspect.prediction import Prediction, Work, predict
from soap_fast.inspect.refresh_cost import PhaseCost, costs_of, refresh_plans
from soap_fast.options import plan_options
from soap_fast.step.call import state_dtype
from soap_fast.step.layout import Layout, layout_of
from soap_fast.step.plan import TensorPlan, plan_tensor

if TYPE_CHECKING:
    from soap_fast.soap import SOAP

Laid = tuple[Layout, tuple[tuple[int, ...], torch.dtype]]  # of a tensor: strides and dtype

__all__ = ["Explanation", "Launched", "Tensors", "explain"]


@dataclass(frozen=True)
class Tensors:
    """Parameters that are stepped alike.

    Attributes:
        count: how many.
        shape, dtype, device: of each.
        groups: its groups of modes, see `group_names`.
        by: the backend that steps them.
        why: the reason, where the optimizer's backend does not.
    """

    count: int
    shape: tuple[int, ...]
    dtype: str
    device: str
    groups: str
    by: str
    why: str


@dataclass(frozen=True)
class Launched:
    """One launch of a plain step of the Triton backend.

    Attributes:
        flops: floating point operations of the mathematics; `executed` with padding.
        bytes: operands read once and results written once.
        floor: seconds, the least it can take on the GPU of `floor_seconds`.
    """

    launch: str
    tiles: int
    flops: int
    executed: int
    bytes: int
    floor: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printed, it is a page of tables."""

    backend: str
    why: str
    refreshes: Sequence[str]  # of each device: how its bases are refreshed
    tensors: Sequence[Tensors]
    launches: Sequence[Launched]
    without_tiles: Sequence[str]  # launches over tensors: the clock, norm
    factors: int
    factor_sizes: int
    refresh: Sequence[PhaseCost] = ()  # of all bases on a GPU; empty without the extension
    uninitialised: int = 0  # parameters of lazy modules, of no shape yet
    sharing: SharingPlan | None = None  # among as many ranks as were asked for
    prediction: Prediction | None = None  # of these, over the link that was asked for
    memory: Peak | None = None  # on a GPU, of the tensors that Triton steps

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def explain(
    optimizer: SOAP, *, ranks: int | None = None, link_gbps: float | None = None
) -> Explanation:
    """Tell what a step of this optimizer consists of; print it.

    Groups are what a rotation treats as one: neighbouring small modes are joined, modes of size 1
    left out. The launches are those of the Triton backend for the tensors it serves, whichever
    backend this optimizer has; gradients are taken to lie as their parameters do.

    Args:
        optimizer: before or after its first step; nothing of it changes.
        ranks: tell as well what sharing its work among so many processes would come to.
        link_gbps: and how long its messages and steps take, and when sharing pays, over links of so
            many gigabits per second: 400 by InfiniBand, 3600 by an H100's NVLink, as stated.

    Raises:
        ValueError: less than one rank, a link without speed, or one without ranks.
    """
    counted: dict[tuple[Any, ...], int] = {}
    served: list[tuple[torch.Tensor, TensorPlan]] = []
    normalizes = False
    planned: list[Planned] = []
    laid: list[Laid] = []
    uninitialised = 0
    for group in optimizer.param_groups:
        options = plan_options(group)
        normalizes = normalizes or group["normalize_grads"]
        for param in dict.fromkeys(group["params"]):
            if is_lazy(param):
                uninitialised += 1
                continue
            plan = plan_tensor(tuple(param.shape), options)
            grad = param if param.grad is None else param.grad
            if unserved(param, grad, plan) is None:
                served.append((param, plan))
            by, why = optimizer._backend.stepped_by(param, grad, plan, group["lr"])
            if why and optimizer._requested_backend == "triton":
                by = "refused"
            names = str(param.dtype).removeprefix("torch."), str(param.device)
            key = (tuple(param.shape), *names, group_names(plan), by, why)
            counted[key] = counted.get(key, 0) + 1
            planned.append(Planned(plan, param.dtype, state_dtype(param)))
            laid.append((layout_of(plan), (param.stride(), param.dtype)))
    layouts = [layout_of(plan) for _, plan in served]
    with torch.device("cpu"):
        launches = plain_step(layouts, [(param.stride(), param.dtype) for param, _ in served])
    workspace = getattr(optimizer._backend, "refresh_workspace", WORKSPACE)
    sizes = [size for tensor in planned for size in tensor.sizes]
    sharing = None if ranks is None else plan_sharing(planned, ranks)
    works = [(launch.name, launch.work) for launch in launches]
    return Explanation(
        optimizer.backend,
        _why(optimizer),
        _refreshes(optimizer),
        [Tensors(count, *key) for key, count in counted.items()],
        [
            Launched(name, w.count, w.needed, w.executed, w.bytes, floor_seconds(w.needed, w.bytes))
            for name, w in works
        ],
        ("clock", "norm") if normalizes else ("clock",),
        len(sizes),
        len(set(sizes)),
        _refresh_of(planned),
        uninitialised,
        sharing,
        None if link_gbps is None else _predicted(sharing, planned, laid, link_gbps),
        peak_of(layouts, launches, workspace),
    )


def _predicted(
    sharing: SharingPlan | None,
    tensors: Sequence[Planned],
    laid: Sequence[Laid],
    link_gbps: float,
) -> Prediction:
    """Of ranks that step their own tensors as long as their launches must take at least."""
    if sharing is None:
        raise ValueError(f"link_gbps={link_gbps} needs ranks: say between how many")
    everything = range(len(tensors))
    owned = [
        _work(
            [tensors[i] for i in everything if sharing.owners[i] == rank],
            [laid[i] for i in everything if sharing.owners[i] == rank],
        )
        for rank in range(len(sharing.shares))
    ]
    bases = [_operator_seconds(share.sizes) for share in sharing.shares]
    return predict(sharing, _work(tensors, laid), bases, owned, link_gbps)


def _work(tensors: Sequence[Planned], laid: Sequence[Laid]) -> Work:
    """Of some tensors on one rank."""
    with torch.device("cpu"):
        launches = plain_step([layout for layout, _ in laid], [memory for _, memory in laid])
    floors = [(one.place, floor_seconds(one.work.needed, one.work.bytes)) for one in launches]
    factors = [(size, tensor.state) for tensor in tensors for size in tensor.sizes]
    return Work(
        sum(floor for _, floor in floors),
        _operator_seconds(factors),
        # As many products carry exp_avg as rotate back.
        sum(floor for place, floor in floors if place == "rotate back"),
    )


def _operator_seconds(factors: Sequence[tuple[int, torch.dtype]]) -> float | None:
    if not extension.available():
        return None
    return sum(phase.seconds for phase in costs_of(refresh_plans(factors)))


def group_names(plan: TensorPlan) -> str:
    """E.g. `192 . 192 . 5x5`; joined modes by x, modes without a factor in brackets."""
    names = []
    for group in plan.groups:
        name = "x".join(str(plan.modes[mode]) for mode in group.modes)
        names.append(name if group.rotated else f"[{name}]")
    return " . ".join(names) or "-"


def _refresh_of(tensors: Sequence[Planned]) -> list[PhaseCost]:
    """What the extension's refresh does for all factors at once, on a GPU."""
    if not extension.available():
        return []
    return costs_of(refresh_plans((size, t.state) for t in tensors for size in t.sizes))


def _why(optimizer: SOAP) -> str:
    if optimizer._requested_backend is not None:
        return "asked for by name"
    others = [s for s in survey() if s.name != optimizer.backend and not s.usable]
    reasons = [f"{status.name} cannot run: {status.reason}" for status in others]
    reasons += optimizer._best_on.passed_over
    return "; ".join(["the best that runs here", *reasons])


def _refreshes(optimizer: SOAP) -> list[str]:
    params = (param for group in optimizer.param_groups for param in group["params"])
    devices = dict.fromkeys(param.device for param in params)
    return [f"{device} {optimizer._backend.refreshes_on(device)}" for device in devices]


def _lines(found: Explanation) -> Iterator[str]:
    yield f"Backend {found.backend}: {found.why}."
    yield from (f"Refreshes on {line}." for line in found.refreshes)
    yield ""
    yield f"Tensors, {found.factors} factors of {found.factor_sizes} sizes"
    yield "(dots separate groups of modes; modes joined by x rotate as one; [modes] have no factor)"
    header = ["count", "shape", "dtype", "device", "groups", "stepped by"]
    rows = [
        [
            str(t.count),
            "x".join(map(str, t.shape)) or "scalar",
            t.dtype,
            t.device,
            t.groups,
            f"{t.by}: {t.why}" if t.why else t.by,
        ]
        for t in found.tensors
    ]
    yield from _table(header, rows, numbers=("count",))
    if found.uninitialised:
        yield f"  and {found.uninitialised} parameters are not initialised yet: run the model once"
    yield ""
    yield _launches_of(found)
    header = ["launch", "tiles", "GFLOP", "padding", "MB", "floor us", "bound by"]
    rows = [_launch_row(launch) for launch in found.launches]
    yield from _table(header, rows, numbers=header[1:-1])
    yield f"  one launch each over all tensors: {', '.join(found.without_tiles)}"
    total = len(found.launches) + len(found.without_tiles)
    flops, moved = (sum(getattr(x, name) for x in found.launches) for name in ("flops", "bytes"))
    floor = 1e3 * sum(launch.floor for launch in found.launches)
    yield (
        f"  {total} launches, {flops / 1e9:.1f} GFLOP, {moved / 1e6:.0f} MB, floor {floor:.2f} ms "
        f"at {FLOPS_PER_SECOND / 1e12:.0f} TFLOP/s and {BYTES_PER_SECOND / 1e12:.0f} TB/s (assumed "
        "of an H100, not measured)"
    )
    if found.refresh:
        yield ""
        yield from _refresh_lines(found.refresh)
    if found.memory is not None and found.memory.most:
        yield ""
        yield f"Memory: {found.memory}"
    if found.sharing is not None:
        yield ""
        yield str(found.sharing)
    if found.prediction is not None:
        yield str(found.prediction)


def _refresh_lines(phases: Sequence[PhaseCost]) -> Iterator[str]:
    yield "Launches of the extension on an NVIDIA GPU for a refresh of all bases"
    header = ["phase", "launches", "GFLOP", "predicted us"]
    rows = [
        [p.phase, str(p.launches), f"{p.flops / 1e9:.2f}", f"{1e6 * p.seconds:.0f}"] for p in phases
    ]
    yield from _table(header, rows, numbers=header[1:])
    launches, flops = (sum(getattr(p, name) for p in phases) for name in ("launches", "flops"))
    predicted = 1e3 * sum(phase.seconds for phase in phases)
    yield (
        f"  {launches} launches, {flops / 1e9:.1f} GFLOP, {predicted:.2f} ms predicted of an H100 "
        "by a model, not measured"
    )


def _launches_of(found: Explanation) -> str:
    if found.backend == "triton":
        return "Launches of a plain step of the tensors that Triton steps"
    ours = f"'{found.backend}' steps tensor by tensor"
    return f"Launches of a plain step by 'triton' on an NVIDIA GPU; {ours}"


def _launch_row(launch: Launched) -> list[str]:
    padding = f"{1 - launch.flops / launch.executed:.1%}" if launch.executed else "-"
    products = launch.flops / FLOPS_PER_SECOND > launch.bytes / BYTES_PER_SECOND
    return [
        launch.launch,
        str(launch.tiles),
        f"{launch.flops / 1e9:.2f}",
        padding,
        f"{launch.bytes / 1e6:.1f}",
        f"{1e6 * launch.floor:.1f}",
        "products" if products else "bytes",
    ]


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str]
) -> Iterator[str]:
    """Columns as wide as they must be; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        yield ("  " + "  ".join(cells)).rstrip()
