"""`kernels`: what every kernel or operator of a step takes, and its share of this machine's roof.

On CUDA each launch of the Triton backend, cold: 256 MiB are written before it. Elsewhere the
operators and stations of a step, by torch's profiler, as they follow one another. `share` is the
least time that flops and bytes need under the roofs of `python -m bench roof`, over the time taken.
`--aot` needs no GPU: every Triton kernel compiled ahead of time, with what the compiler made of it;
`load_bytes` is the narrowest load that brings an operand of a product to shared memory or
registers, `store_bytes` the narrowest store of a plane or moment. `--check` fails on a spill, where
either is not 16, on a tile that is walked across memory (`unordered`), on a running sum that goes
through two products (`chained`), and on more shared memory than an architecture has. With
`--shapes` besides, what every launch of that model's step issues, moves and takes: docs/cost.md.
"""

from __future__ import annotations

import argparse

import torch

from bench import envelope, shapes, timed
from bench.command import Row, common, positive, show
from bench.cost import aot
from bench.files import BadInput
from bench.roof import Roofs, measure
from soap_fast.backends.triton.backend import PRECISIONS, interpreted

COLUMNS = (
    "name", "shapes", "phase", "by", "times", "us", "gflop", "mb", "gflop_s", "gb_s", "share",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    common(parser, "--shapes", "--device", "--backend", shapes=None)
    of = "of the Triton backend, or of the one that runs (default: launches on cuda)"
    add("--of", choices=("launches", "operators"), help=of)
    add("--steps", type=positive(int), default=5, help="of each kind (default: %(default)s)")
    add("--roof", metavar="FILE", help="of `roof --json`; else measured now")
    add("--aot", action="store_true", help="compile ahead of time, no GPU")
    add("--check", action="store_true", help="with --aot: fail on what must not be")
    precision = "with --aot, of products (default: all)"
    add("--precision", nargs="+", default=["tf32x3", "ieee", "tf32"], help=precision)
    add("--sm", type=int, nargs="+", default=aot.ARCHITECTURES, help="with --aot: architectures")


def run(options: argparse.Namespace) -> list[Row] | int:
    if options.aot and options.shapes:
        return predict(options)
    if options.aot:
        return aot.run(options.precision, options.sm, options.check, options.json)
    on_gpu = options.device.startswith("cuda")
    of = options.of or ("launches" if on_gpu else "operators")
    if of == "launches" and not on_gpu and not interpreted():
        raise BadInput("--of launches: torch sees no NVIDIA GPU; take --of operators, or --aot")
    inventory = shapes.load(options.shapes or "elic")
    roofs = read_roofs(options.roof) if options.roof else None
    try:
        if of == "launches":
            rows = timed.launches(inventory, options.device, options.steps)
        else:
            rows = timed.operators(inventory, options.device, options.backend, options.steps)
    except ValueError as error:
        raise BadInput(str(error)) from None
    roofs = roofs or Roofs.of_rows(measure(options.device))
    for row in rows:
        row |= {**_rates(row, roofs), "shapes": inventory.model, "device": options.device}
        row["threads"] = torch.get_num_threads()
    return rows


def predict(options: argparse.Namespace) -> int:
    """`--aot --shapes`: what every launch of a model's plain step costs, without a GPU."""
    if options.check:
        raise BadInput("--check looks at every kernel, whatever the model: leave --shapes out")
    aot.check_compiles()
    if unknown := set(options.precision) - set(PRECISIONS):
        raise BadInput(f"no precision {', '.join(unknown)}: take {', '.join(PRECISIONS)}")
    if unknown := set(options.sm) - set(aot.ARCHITECTURES):
        raise BadInput(f"no sm {', '.join(map(str, unknown))}: take 80, 90 or 100")
    from bench.cost import rows as cost  # needs numpy, which a GPU's machine may lack

    found = cost.rows(shapes.load(options.shapes), options.sm, options.precision)
    show(found, cost.COLUMNS, options.json, "kernels --aot --shapes")
    return 0


def read_roofs(path: str) -> Roofs:
    """What `roof --json` has written on this machine; BadInput for another file."""
    file = envelope.read(path)
    if (other := envelope.differences(file.machine, envelope.machine())) is not None:
        raise BadInput(f"--roof {path} is of another machine ({other}): leave it out, or measure")
    if file.command != "roof":
        raise BadInput(f"--roof {path} holds no roofs: write it by `roof --json`")
    return Roofs.of_rows(file.rows)


def _rates(row: Row, roofs: Roofs) -> Row:
    """What is derived from time, flops and bytes; None where these are not known."""
    seconds, flops, moved = 1e-6 * row["us"], row["flops"], row["bytes"]
    if flops is None or moved is None or seconds <= 0:
        return dict.fromkeys(("gflop", "mb", "gflop_s", "gb_s", "share"))
    precision = row["precision"] if row["precision"] in roofs.gemm else "float32"
    return {
        "gflop": flops / 1e9,
        "mb": moved / 1e6,
        "gflop_s": flops / seconds / 1e9,
        "gb_s": moved / seconds / 1e9,
        "share": roofs.least_seconds(flops, moved, precision) / seconds,
    }
