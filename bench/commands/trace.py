"""`trace`: a profiler's trace of steps, in which every phase and what computes in it has a name.

The first call, plain steps and one with a refresh go to a file that https://ui.perfetto.dev and
chrome://tracing show; the table sums up the named parts. Steps of another optimizer come before, so
that nothing compiles in these. With `--nvtx` nothing is written: the
ranges are NVTX's, for Nsight Systems around this command, as in
`nsys profile python -m bench trace --nvtx`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench import shapes
from bench.arguments import add_backend, add_device, add_shapes, positive
from bench.command import BadInput, Row, add_json_option, check_target, show
from bench.measuring.profiles import PREFIXES, Part, Stepper, parts, profiling, warmed_up
from bench.output.progress import progress

COLUMNS = ("name", "times", "host_ms", "device_ms", "share")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    add_device(parser)
    add_backend(parser)
    parser.add_argument(
        "--steps", type=positive(int), default=3, help="plain ones (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        default="runs/trace.json",
        metavar="FILE",
        help="the trace; compressed where it ends in .gz (default: %(default)s)",
    )
    parser.add_argument("--nvtx", action="store_true", help="NVTX ranges and no file, for nsys")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    if options.nvtx and not options.device.startswith("cuda"):
        raise BadInput(f"--nvtx needs a GPU, not --device {options.device}: leave it out")
    inventory = shapes.load(options.shapes)
    if not options.nvtx:
        check_target(options.out, "--out")
    try:
        stepper = warmed_up(inventory, options.device, options.backend)
    except ValueError as error:
        raise BadInput(str(error)) from None
    phases = ["first", *["plain"] * options.steps, "refresh"]
    if options.nvtx:
        with torch.autograd.profiler.emit_nvtx():
            _take(stepper, phases)
            torch.cuda.synchronize(options.device)
        return 0
    with profiling(options.device) as found:
        _take(stepper, phases)
    found.export_chrome_trace(options.out)
    rows = [*_rows(parts(found, options.device))]
    for row in rows:
        row |= {"shapes": inventory.model, "device": options.device}
        row |= {"backend": stepper.optimizer.backend, "threads": torch.get_num_threads()}
    show(rows, COLUMNS, options.json)
    if options.json != "-":
        size = Path(options.out).stat().st_size
        print(f"{options.out}, {size / 1e6:.1f} MB: open it at https://ui.perfetto.dev")
    return 0


def _take(stepper: Stepper, phases: list[str]) -> None:
    for phase in progress(phases, "steps", "step"):
        with torch.autograd.profiler.record_function(f"{phase} step"):
            stepper.step(phase)


def _rows(found: dict[str, Part]) -> list[Row]:
    """`share` is of the three phases together, on the device where there is one."""

    def spent(part: Part) -> float:
        return part.host if part.device is None else part.device

    whole = sum(spent(found[name]) for name in PHASES if name in found)
    return [
        {
            "name": name,
            "times": part.times,
            "host_ms": 1e3 * part.host,
            "device_ms": None if part.device is None else 1e3 * part.device,
            "share": spent(part) / whole if whole else None,
        }
        for name, part in found.items()
    ]


PHASES = tuple(f"{PREFIXES[0]}{name}" for name in ("begin", "update", "refresh"))
