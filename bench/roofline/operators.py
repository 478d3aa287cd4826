"""`kernels --of operators`: the named parts of a step, each with what it computes and moves."""

from __future__ import annotations

import statistics

from bench.command import Row
from bench.measuring.profiles import UNTIMED, Part, parts, warmed_up
from bench.output.progress import progress
from bench.roofline.costs import Cost, costs
from bench.shapes import Inventory
from soap_fast.options import plan_options


def measure(inventory: Inventory, device: str, backend: str | None, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps; the first step happens once.

    Raises:
        ValueError: a backend that is unknown or does not run here.
    """
    stepper = warmed_up(inventory, device, backend)
    options = plan_options(stepper.optimizer.param_groups[0])
    known = costs((entry.shape for entry in inventory.entries), options)
    seen: dict[tuple[str, str], list[Part]] = {}
    timed = ["first", *["plain"] * steps, *["refresh"] * steps]
    for phase in progress(timed, "steps", "step"):
        profiled = stepper.profiled(phase)
        if phase == "first":
            for untimed in UNTIMED:
                stepper.step(untimed)
        for name, part in parts(profiled, device).items():
            seen.setdefault((name, phase), []).append(part)
    return [
        _row(name, phase, found, known.get(name), stepper.optimizer.backend)
        for (name, phase), found in seen.items()
        if _belongs(name, phase) and ("::" not in name or name in known)
    ]


def _belongs(name: str, phase: str) -> bool:
    """What a plain step has as well is told of plain steps; empty acts are told of none."""
    act = {"first": "begin", "refresh": "refresh"}.get(phase, "update")
    base = name.removeprefix("soap_fast.").removeprefix("soap_fast::")
    return PHASE_OF.get(base, "plain") == phase or base == act


# Everything else belongs to an update.
PHASE_OF = {
    "begin": "first",
    "eigh": "first",
    "eigh_eager": "first",
    "refresh": "refresh",
    "refresh_": "refresh",
    "refresh_eager": "refresh",
    "carry_": "refresh",
    "carry": "refresh",
}


def _row(name: str, phase: str, found: list[Part], cost: Cost | None, backend: str) -> Row:
    host = [1e6 * part.host for part in found]
    work = [1e6 * part.device for part in found if part.device is not None] or host
    return {
        "name": name,
        "phase": phase,
        "by": backend,
        "times": found[0].times,
        "us": statistics.median(work),
        "host_us": statistics.median(host),
        "samples": {"us": work, "host_us": host},
        "flops": None if cost is None else cost.flops,
        "bytes": None if cost is None else cost.bytes,
        "precision": "float32",
    }
