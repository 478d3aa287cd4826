"""`tune`: times ways to compile and spread every op on a GPU; the best goes where steps read it.

A candidate differs from the op's entry in tuning.json. `us` is what the op's launches take in one
step on a model's parameters, the median over steps, by CUDA events and with cold caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench import shapes
from bench.command import Row, common, positive
from bench.files import BadInput
from bench.kernels import Stepper, TimingLauncher
from soap_fast.backends.triton.backend import TritonBackend, interpreted
from soap_fast.backends.triton.launch.tuning import FILE, TUNING, Tuning, tuning_of
from soap_fast.versions import triton_version

COLUMNS = ("op", "num_warps", "programs_per_sm", "constants", "us", "chosen")

Values = dict[str, tuple[int, ...]]
# Only what neither spills nor loads operands more narrowly than 16 bytes: products keep BK 32 and
# 4 warps (`python -m bench kernels --aot --check` says so).
# A lane's registers are what FOLD_LANES fill with 4 warps.
PLANES: Values = {"programs_per_sm": (1, 2, 4), "ROWS": (2048, 4096, 8192)}
PRODUCTS: Values = {"programs_per_sm": (1, 2, 3), "STAGES": (2, 3, 4)}
SMALL: Values = {"num_warps": (1, 2, 4), "programs_per_sm": (4, 8, 16)}
VALUES: dict[str, Values] = {
    **dict.fromkeys(("gather", "apply"), PLANES),
    **dict.fromkeys(("clock", "norm", "count"), SMALL),
    **dict.fromkeys(("gram", "rotate", "settle"), PRODUCTS),
    "adam": {"num_warps": (4, 8), "programs_per_sm": (2, 4, 8), "ROWS": (512, 1024, 2048)},
    "permute": {"num_warps": (4, 8), "programs_per_sm": (2, 4), "ELEMENTS": (2048, 4096)},
    "gram_reduce": {"num_warps": (4, 8), "programs_per_sm": (1, 2, 4)},
    "fold_gram": {"num_warps": (1, 2, 4), "programs_per_sm": (2, 4, 8)},
    "derive": {"num_warps": (4, 8), "programs_per_sm": (2, 4, 8), "BLOCK": (32, 64)},
    "grouped_matmul": {"programs_per_sm": (1, 2, 3)},
}
SPREAD = ("num_warps", "programs_per_sm")  # values that are not constants of a kernel
OF_A_REFRESH = ("derive", "count", "permute", "settle", "grouped_matmul")
UNTIMED_STEPS = 2  # of every candidate: one compiles, one settles
# A candidate takes the place of what is there only if it is this much faster: less may be noise.
GAIN = 0.02


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    common(parser, "--shapes")
    add("--op", nargs="+", choices=VALUES, default=list(VALUES), help="default: all")
    steps = "for each candidate (default: %(default)s)"
    add("--steps", type=positive(int), default=30, help=steps)
    add("--write", action="store_true", help="write the best to tuning.json")


def run(options: argparse.Namespace) -> list[Row]:
    inventory = shapes.load(options.shapes)
    where = {**_gpu(), "shapes": inventory.model}
    tuner = Tuner(inventory, TimingLauncher())
    entries = json.loads(FILE.read_text(encoding="utf-8"))["ops"]
    chosen, rows = {}, []
    for op in options.op:
        times = tuner.times(op, options.steps)
        if not times:
            rows.append({"op": op})  # these shapes launch none
            continue
        chosen[op] = choose(entries[op], times, where)
        for tuning, us in times:
            taken = "yes" if tuning == tuning_of(chosen[op]) else ""
            rows.append({"op": op, **asdict(tuning), "us": us, "chosen": taken})
    if options.write:
        write(chosen)
    return rows


def _gpu() -> dict[str, str]:
    """What a measurement on this machine's GPU says of where it was taken."""
    if not torch.cuda.is_available():
        raise BadInput("torch sees no NVIDIA GPU, and what is tuned is time on one")
    if interpreted():
        raise BadInput("TRITON_INTERPRET is set: interpreted kernels run on the CPU")
    return {"device": torch.cuda.get_device_name("cuda"), "triton": triton_version() or "none"}


# Candidates and the choice ---------------------------------------------------------------------


def candidates(op: str) -> Iterator[Tuning]:
    """What is in use, then every other combination of the values above."""
    current = TUNING[op]
    yield current
    for values in product(*VALUES[op].values()):
        constants = dict(zip(VALUES[op], values, strict=True))
        spread = {name: constants.pop(name) for name in SPREAD if name in constants}
        candidate = replace(current, constants={**current.constants, **constants}, **spread)
        if candidate != current:
            yield candidate


def choose(
    entry: dict[str, Any], times: Sequence[tuple[Tuning, float]], where: dict[str, str]
) -> dict[str, Any]:
    """An op's entry after its candidates, the current one first, took so many microseconds."""
    ranked = sorted(times, key=lambda timed: timed[1])
    best = ranked[0] if ranked[0][1] < (1 - GAIN) * times[0][1] else times[0]
    others = [timed for timed in ranked if timed is not best]
    runner_up = {**asdict(others[0][0]), "us": others[0][1]} if others else None
    measurement = {**where, "us": best[1], "runner_up": runner_up}
    return {**entry, **asdict(best[0]), "measurement": measurement}


def write(chosen: dict[str, dict[str, Any]], path: Path = FILE) -> None:
    """Replace these ops' entries in a tuning file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["ops"].update(chosen)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# Timing ----------------------------------------------------------------------------------------


class Tuner(Stepper):
    """SOAP by whatever tuning is to be timed."""

    def __init__(self, inventory: shapes.Inventory, launcher: Any, device: str = "cuda") -> None:
        super().__init__(inventory, device, "eager", normalize_grads=True)  # norm launches too
        self.optimizer._backend = self.backend = TritonBackend(launcher=launcher)
        self.launcher = launcher
        self.step("first")

    def times(self, op: str, steps: int) -> list[tuple[Tuning, float]]:
        """Candidates of an op, the current one first, and what each takes in a step; maybe none."""
        timed = []
        for tuning in candidates(op):
            us = self.microseconds(op, tuning, steps)
            if us is None:
                return []  # these shapes launch none, however tuned
            timed.append((tuning, us))
        return timed

    def microseconds(self, op: str, tuning: Tuning, steps: int) -> float | None:
        self.launcher.watches = lambda launched: launched == op
        before, TUNING[op] = TUNING[op], tuning
        try:
            self.backend.forget()  # its tables were made for another tuning
            times = []
            for _ in range(UNTIMED_STEPS + steps):
                self.step("refresh" if op in OF_A_REFRESH else "plain")
                times.append(sum(us for _, us in self.launcher.taken()))
        finally:
            TUNING[op] = before
        return statistics.median(times[UNTIMED_STEPS:]) or None
