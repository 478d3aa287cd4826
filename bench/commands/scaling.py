"""`scaling`: how the cost of a step grows with width, tensors, kernel size, frequency and threads.

One of them changes at a time. `first_ms`, `plain_ms`, `refresh_ms` and `mean_ms` are as in
`python -m bench step`; the rows `exponent` tell e of cost ~ x^e, fitted to the larger half of the
sizes, and `--json` their standard errors.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from bench.arguments import add_backend, add_device, positive
from bench.command import BadInput, Row, add_json_option, check_target, show
from bench.measuring.sweeps import measure, rows, sweeps
from bench.output import envelope
from bench.report.fit import exponent

COLUMNS = (
    "sweep", "x", "threads", "first_ms", "plain_ms", "refresh_ms", "mean_ms",
)  # fmt: skip
METRICS = ("first_ms", "plain_ms", "refresh_ms", "mean_ms")
OF_A_PERIOD = ("mean_ms",)  # what a frequency changes: calls themselves stay as they are
SWEEPS = ("width", "tensors", "kernel", "frequency", "threads")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="default: all"
    )
    add_device(parser)
    add_backend(parser)
    parser.add_argument(
        "--repeats",
        type=positive(int),
        help="plain and refreshing calls of each size (default: 7, with --quick 1); the sweep of "
        "frequencies takes one period of the longest instead",
    )
    parser.add_argument("--quick", action="store_true", help="few and small sizes, in seconds")
    parser.add_argument("--plot", metavar="FILE", help="draw cost against size, as PNG")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    check_target(options.plot, "--plot")
    repeats = options.repeats or (1 if options.quick else 7)
    known = sweeps(options.quick, repeats, options.device)
    chosen = [known[name] for name in dict.fromkeys(options.sweep) if name in known]
    if not chosen:
        raise BadInput(f"--sweep threads: {options.device} has none to choose; take another sweep")
    points: list[Row] = []
    try:
        for sweep in chosen:
            found = measure(sweep, options.device, options.backend)
            points += rows(sweep, found, options.device)
    except ValueError as error:
        raise BadInput(str(error)) from None
    fits = exponents(points)
    with redirect_stdout(sys.stderr) if options.json == "-" else nullcontext():
        show(list(for_people(points, fits)), COLUMNS, None)
    if options.json is not None:
        envelope.write(options.json, [*points, *fits])
    if options.plot is not None:
        from bench.report.cost import draw

        draw(points, fits, Path(options.plot))
    return 0


def exponents(points: list[Row]) -> list[Row]:
    """A row per sweep and kind of call that every size of the sweep has."""
    fits = []
    for name in dict.fromkeys(point["sweep"] for point in points):
        of_sweep = [point for point in points if point["sweep"] == name]
        for metric in OF_A_PERIOD if name == "frequency" else METRICS:
            costs = [point[metric] for point in of_sweep]
            if None in costs:
                continue
            found = exponent([point["x"] for point in of_sweep], costs)
            if found is not None:
                fits.append({"sweep": name, "metric": metric, **found._asdict()})
    return fits


def for_people(points: list[Row], fits: list[Row]) -> list[Row]:
    """Every sweep's sizes, and below them its exponents."""
    shown: list[Row] = []
    for name in dict.fromkeys(point["sweep"] for point in points):
        shown += [point for point in points if point["sweep"] == name]
        of_sweep = {fit["metric"]: fit["exponent"] for fit in fits if fit["sweep"] == name}
        shown.append({"sweep": name, "x": "exponent", **of_sweep})
    return shown
