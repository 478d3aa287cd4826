"""`plan`: which modes of a model's parameters rotate together, and what a step of that costs.

Nothing is measured and no GPU is needed: this is what `soap_fast.explain` tells of an optimizer.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from bench import shapes
from bench.arguments import positive
from bench.command import BadInput, add_json_option, check_target
from bench.output import envelope
from soap_fast import SOAP, explain


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", required=True, help="inventory names or files")
    parser.add_argument("--max-precond-dim", type=int, default=10000, help="larger: no factor")
    parser.add_argument(
        "--ranks", type=positive(int), help="share the work among so many processes"
    )
    parser.add_argument("--precondition-1d", action="store_true", help="factors for 1-D tensors")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    results = []
    for name in options.shapes:
        inventory = shapes.load(name)
        params = [torch.nn.Parameter(torch.empty(e.shape)) for e in inventory.entries]
        try:
            optimizer = SOAP(
                params,
                max_precond_dim=options.max_precond_dim,
                precondition_1d=options.precondition_1d,
            )
        except ValueError as error:
            raise BadInput(str(error)) from None
        found = explain(optimizer, ranks=options.ranks)
        results.append({"model": inventory.model, **asdict(found)})
        if options.json != "-":
            print(f"{inventory.model}\n{found}\n")
    if options.json is not None:
        envelope.write(options.json, results)
    return 0
