"""`launches`: what a step of the Triton backend launches, moves and computes on a model's shapes.

No GPU is needed: the optimizer runs as always, only the driver's call of a launch is left out.
`padding` is 1 - needed / executed flops of rotations and Gram matrices. `bytes_ratio` relates to
one pass over p, g, exp_avg, exp_avg_sq, K and Q, read once and written once where a step updates
them; `host_ratio` to one pass of `p.grad.data_ptr()` over the parameters. `host_ms` is of a step
whose gradients are the tensors of the one before, `host_new_gradients_ms` of one after `zero_grad`,
`host_refresh_ms` of one that refreshes all bases, the operator's own time left out.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench import shapes
from bench.command import add_json_option, check_target, show
from bench.measuring.recorded import record
from bench.output.progress import progress
from bench.roofline.counted import counted, host_times

COLUMNS = (
    "model", "launches_plain", "launches_refresh", "tiles", "flops", "bytes", "bytes_ratio",
    "padding", "workspace_ratio", "state_bytes", "host_ms",
    "host_new_gradients_ms", "host_refresh_ms", "host_ratio", "floor_ms",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["elic", "tcm_64", "tcm_128", "lalic", "dcae", "hyperprior"],
        help="inventory names or files (default: the models of the paper)",
    )
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    results = [measure(shapes.load(name)) for name in progress(options.shapes, "models", "model")]
    show(results, COLUMNS, options.json)
    return 0


def measure(inventory: shapes.Inventory) -> dict[str, Any]:
    return counted(record(inventory), inventory) | host_times(inventory)
