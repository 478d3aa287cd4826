"""`shapes`: a model's parameters and what it costs to run."""

from __future__ import annotations

import argparse
import sys

from bench.command import Parser, check_target, positive
from bench.files import BadInput
from bench.lic import inventory
from bench.lic.models import MODELS


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "shapes",
        help="a model's parameters in the form of bench/shapes/, and its multiply-adds",
    ).add_argument
    add("--model", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all of them)")
    add("--factor", type=positive(float), default=1.0, help="of all widths (default: %(default)g)")
    add("--json", metavar="FILE|-", help="write one model's inventory there")


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    if options.model is None and options.json is not None:
        raise BadInput("--json is for one model: name it by --model")
    names = list(MODELS) if options.model is None else [options.model]
    inventories = [inventory.describe(name, options.factor) for name in names]
    if options.json is not None:
        inventory.write(inventories[0], options.json)
    print(inventory.table(inventories), file=sys.stderr if options.json == "-" else sys.stdout)
    return 0
