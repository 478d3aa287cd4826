"""`shapes`: a model's parameters and what it costs to run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.command import Parser, check_target, positive
from bench.files import BadInput, write_text
from bench.lic.models import MODELS, build

SIDE = 256  # pixels, of the images that models are usually trained on


def describe(name: str, factor: float = 1.0) -> dict[str, Any]:
    """{model, source, num_params, num_params_main, multiply_adds_256, params}; no memory is used.

    `multiply_adds_256` are those of products and convolutions that code and decode one image of
    256x256 pixels.

    Raises:
        BadInput: there is no such model.
    """
    with torch.device("meta"):
        model = build(name, factor)
    params = [_entry(parameter, param) for parameter, param in model.named_parameters()]
    scalars = [param.numel() for param in model.parameters()]
    aux = [entry.get("aux", False) for entry in params]
    return {
        "model": name,
        "source": f"python -m bench.lic shapes --model {name} --factor {factor:g}",
        "num_params": sum(scalars),
        "num_params_main": sum(n for n, is_aux in zip(scalars, aux, strict=True) if not is_aux),
        "multiply_adds_256": multiply_adds(model, SIDE),
        "params": params,
    }


def multiply_adds(model: nn.Module, side: int) -> int:
    """Of one image of side x side pixels in evaluation, by a model on the meta device."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def table(descriptions: list[dict[str, Any]]) -> str:
    """A line for each model."""
    rows = [
        [d["model"], len(d["params"]), d["num_params"], d["multiply_adds_256"] / 1e9]
        for d in descriptions
    ]
    headers = ["model", "tensors", "parameters", "1e9 multiply-adds at 256x256"]
    return tabulate(rows, headers=headers, floatfmt=".1f", intfmt=",")


def write(description: dict[str, Any], target: str) -> None:
    """The description alone, which `bench.shapes.load` reads: `--shapes FILE` takes it."""
    text = _text(description)
    if target == "-":
        sys.stdout.write(text)
        return
    if Path(target).is_dir():
        raise BadInput(f"--json {target} is a folder; name a file, or - for standard output")
    write_text(Path(target), text)


def _text(description: dict[str, Any]) -> str:
    """JSON with a line for every parameter."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in description.items()]
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in description["params"])
    return "\n".join(["{", *head[:-1], f' "params": [\n{lines}\n ]', "}", ""])


def _entry(name: str, param: nn.Parameter) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "shape": list(param.shape)}
    if name.endswith("quantiles"):
        entry["aux"] = True
    if not param.is_contiguous():
        entry["contiguous"] = False
    if not param.requires_grad:
        entry["grad"] = False
    return entry


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
    inventories = [describe(name, options.factor) for name in names]
    if options.json is not None:
        write(inventories[0], options.json)
    print(table(inventories), file=sys.stderr if options.json == "-" else sys.stdout)
    return 0
