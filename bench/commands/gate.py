"""`gate`: what must not change or become slow, on any machine; exit code 1 where it has.

`exact`: launches, tiles, flops, bytes, padding, workspace and state of the models' steps are those
recorded under bench/results. `spills`: every Triton kernel compiled, as recorded. `host`, `peers`:
ratios of times in this run, with wide margins: a step's host side over a pass over the gradients,
and our step on the CPU over other SOAPs' steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout

from bench import shapes
from bench.command import BadInput, Row, add_json_option, check_target, show
from bench.gates import exact, ratios, spills
from bench.measuring.recorded import record
from bench.output import envelope
from bench.output.progress import progress
from bench.roofline.counted import counted

COLUMNS = ("check", "of", "found", "rule", "expected", "ok")
KINDS = ("exact", "spills", "host", "peers")
HOST_SHAPES = ("elic", "lalic", "hyperprior")  # three are enough for seconds of a gate's time
PEER_SHAPES = "hyperprior"  # of the recorded models the one with the shortest steps


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="MODEL",
        help="for exact and host (default: all recorded, and three)",
    )
    parser.add_argument(
        "--kernels", metavar="FILE", help=f"for spills, by {spills.HOW}; else compiled now"
    )
    parser.add_argument(
        "--record", action="store_true", help="write the bytes of state that are expected, and stop"
    )
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    models = options.shapes or exact.models()
    if options.record:
        exact.record_state([counted(record(i), i) for i in map(shapes.load, models)])
        return 0
    rows: list[Row] = []
    if "spills" in options.only:
        rows += _spills(options.kernels)
    if {"exact", "host"} & set(options.only):
        rows += _models(models, options.only, options.shapes or HOST_SHAPES)
    if "peers" in options.only:
        inventory = shapes.load(PEER_SHAPES)
        rows += ratios.peers(inventory, ratios.speedups(PEER_SHAPES))
    failed = [row for row in rows if not row["ok"]]
    told = [row for row in rows if not row["ok"] or row["rule"] != "=="]
    with redirect_stdout(sys.stderr) if options.json == "-" else nullcontext():
        show([_short(row) for row in told], COLUMNS, None)
        print(f"{len(rows)} checks, {len(failed)} failed")
    if options.json is not None:
        envelope.write(options.json, rows)
    return int(bool(failed))


def _short(row: Row) -> Row:
    """For a terminal; of what is as recorded, a count is enough."""
    short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
    return {**short, "ok": "yes" if row["ok"] else "NO"}


def _models(models: list[str], only: Sequence[str], host: Sequence[str]) -> Iterator[Row]:
    """What is expected is looked up first, so that a model without a record costs no time."""
    if "exact" not in only:
        models = [name for name in models if name in host]
    inventories = [shapes.load(name) for name in models]
    expected = [exact.expected(inventory.model) for inventory in inventories]
    each = list(zip(models, inventories, expected, strict=True))
    for name, inventory, wanted in progress(each, "models", "model"):
        if "host" in only and name in host:
            yield ratios.host(inventory, wanted)
        if "exact" in only:
            yield from exact.checks(counted(record(inventory), inventory), wanted)


def _spills(given: str | None) -> Iterator[Row]:
    try:
        from triton import __version__ as version
    except ImportError:
        raise BadInput("triton is not installed: pip install triton, or leave out spills") from None
    yield from spills.checks(spills.compiled(given), spills.expected(version))
