"""That all ranks are at the same point, with the same parameters and options; or who is not.

A collective that ranks enter for different reasons hangs, or hands one the other's bytes. So what
they are about to do is told first, in numbers of one form for every occasion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parameter import is_lazy

from soap_fast.distributed.messages import digest, numbers_of_all
from soap_fast.options import NAMES, plain_options

State = Mapping[torch.Tensor, Mapping[str, Any]]
Which = Callable[[torch.Tensor], bool]  # of parameters
OCCASIONS = (
    "its first step",
    "first bases",
    "a refresh",
    "an exchange",
    "the end of its exchanges",
    "a step after one that raised",
)
FIRST_STEP, FIRST_BASES, REFRESH, EXCHANGE, END, AFTER_ERROR = range(6)
OPTIONS = tuple(sorted(NAMES))
SUBJECTS = ("parameters", "backends", "overlap", "clocks of its state", "gradients", *OPTIONS)
LENGTH = len(SUBJECTS)
MOMENT = ("factors or order of them", "clocks of its state", "gradients")


class Point(NamedTuple):
    """Where a rank is.

    Attributes:
        occasion: one of those above.
        step: calls of `SOAP.step` so far.
        failed: whether it could not do its part.
        numbers: on which all ranks must agree, `LENGTH` at most.
    """

    occasion: int
    step: int
    failed: bool
    numbers: Sequence[int]


def points_of_all(mine: Point, group: dist.ProcessGroup, device: torch.device) -> list[Point]:
    """Where all ranks are; waits for them.

    Raises:
        RuntimeError: on every rank, where one is at another point; it names that rank. Not where
            one has failed, which may be anywhere. At first steps it is no matter how many were
            before, as ranks may have missed some until a state was loaded.
    """
    padding = [0] * (LENGTH - len(mine.numbers))
    sent = [mine.occasion, mine.step, int(mine.failed), *mine.numbers, *padding]
    points = [
        Point(occasion, step, bool(failed), numbers)
        for occasion, step, failed, *numbers in numbers_of_all(sent, group, device)
    ]
    first = points[0]
    for rank, other in enumerate(() if unable(points) else points):
        alike = other.step == first.step or first.occasion == FIRST_STEP
        if other.occasion != first.occasion or not alike:
            raise RuntimeError(
                f"rank {rank} is at {_where(other)}, rank 0 at {_where(first)}: every rank must "
                "call optimizer.step() equally often, with the same parameters having gradients"
            )
    return points


def unable(points: Sequence[Point]) -> list[int]:
    """The ranks that have failed."""
    return [rank for rank, point in enumerate(points) if point.failed]


def _where(point: Point) -> str:
    return f"{OCCASIONS[point.occasion]} in step {point.step}"


def check_alike(points: Sequence[Point]) -> None:
    """Refuse ranks whose optimizers were built or loaded in different ways, at the first step.

    Raises:
        ValueError: on every rank, naming one that differs, and in what.
    """
    for rank, point in enumerate(points):
        pairs = zip(SUBJECTS, point.numbers, points[0].numbers, strict=True)
        different = [subject for subject, own, first in pairs if own != first]
        if different:
            raise ValueError(
                f"rank {rank} has other {', '.join(different)} than rank 0: sharding needs the "
                "same parameters in the same order, with the same options, state and gradients, on "
                "every rank"
            )


def check_together(points: Sequence[Point]) -> None:
    """Refuse ranks that are at the same point of a step with other work.

    Raises:
        RuntimeError: on every rank, naming one that differs, and in what.
    """
    for rank, other in enumerate(points):
        pairs = zip(MOMENT, other.numbers, points[0].numbers, strict=False)  # others are padding
        different = [subject for subject, own, first in pairs if own != first]
        if different:
            raise RuntimeError(
                f"rank {rank} is at {OCCASIONS[other.occasion]} of other factors than rank 0, with "
                f"other {', '.join(different)}: the same parameters must have gradients of the "
                "same dtype on every rank, as DistributedDataParallel sees to"
            )


def subjects(
    groups: Sequence[Mapping[str, Any]], state: State, backends: Sequence[str], overlap: bool
) -> list[int]:
    """A number for each of `SUBJECTS`."""
    shapes = [list(map(_form, group["params"])) for group in groups]
    names = [group.get("param_names") for group in groups]
    options = [plain_options(group) for group in groups]
    by_option = [[_value(group[name]) for group in options] for name in OPTIONS]
    built = (shapes, names), backends, overlap
    return [digest(one) for one in (*built, _clocks(groups, state), gradients(groups), *by_option)]


def moment(
    groups: Sequence[Mapping[str, Any]], state: State, work: object, alone: Which
) -> list[int]:
    """Numbers for a piece of work in the middle of a run, one for each of `MOMENT`.

    Args:
        alone: whether what a parameter owes is this rank's own affair, as others owe it no more.
    """
    return [digest(one) for one in (work, _clocks(groups, state, alone), gradients(groups))]


def _form(param: torch.Tensor) -> tuple[Any, ...]:
    shape = None if is_lazy(param) else tuple(param.shape)
    return shape, str(param.dtype), param.device.type, str(getattr(param, "placements", None))


def _value(option: Any) -> Any:
    return float(option) if isinstance(option, torch.Tensor) else option


def _none(param: torch.Tensor) -> bool:
    return False


def _clocks(groups: Sequence[Mapping[str, Any]], state: State, alone: Which = _none) -> list[Any]:
    """Of each parameter its calls, phases and the modes whose refresh it owes."""
    found: list[Any] = []
    for param in (p for group in groups for p in group["params"]):
        entry = state.get(param, {})
        owed = entry["owed"].modes if "owed" in entry and not alone(param) else None
        found.append((entry.get("calls", 0), entry.get("phases"), owed))
    return found


def gradients(groups: Sequence[Mapping[str, Any]]) -> list[torch.dtype | None]:
    """Who has a gradient, and of which dtype, by which backends decide who steps a tensor."""
    found = (p.grad for group in groups for p in group["params"])
    return [None if grad is None else grad.dtype for grad in found]
