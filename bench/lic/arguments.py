"""The command line: which options there are, and which values they take."""

from __future__ import annotations

import argparse

from bench.arguments import Parser, device, positive
from bench.lic.demo import CHECKPOINT_EVERY
from bench.lic.models import MODELS, MeanScaleHyperprior
from bench.lic.optimizers import BUILDERS
from bench.lic.search import RESULT

DESCRIPTION = "Learned image compression: a model trained with three optimizers; models' shapes."

# 1200 steps take 4 minutes with all three optimizers on two cores; a search takes three times that.
TRAIN_STEPS = 1200
SEARCH_STEPS = 600


def parse(arguments: list[str]) -> argparse.Namespace:
    top = Parser(prog="python -m bench.lic", description=DESCRIPTION)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    _train(commands)
    _shapes(commands)
    return top.parse_args(arguments)


def _shapes(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "shapes",
        help="a model's parameters in the form of bench/shapes/, and its multiply-adds",
    ).add_argument
    add("--model", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all of them)")
    add("--factor", type=positive(float), default=1.0, help="of all widths (default: %(default)g)")
    add("--json", metavar="FILE|-", help="write one model's inventory there")


def _train(commands: argparse._SubParsersAction[Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train the same small compression model with each optimizer, and compare",
    )
    add = train.add_argument
    add("--data", metavar="DIR", help="folder of images (default: scikit-image's photos)")
    add("--out", metavar="DIR", default="runs/lic", help="for results (default: %(default)s)")
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add(
        "--checkpoint-every",
        type=positive(int),
        metavar="STEPS",
        default=CHECKPOINT_EVERY,
        help="steps between checkpoints in --out (default: %(default)s)",
    )
    add("--search", action="store_true", help=f"search the rates; to {RESULT.name}, or --json FILE")
    add("--optimizers", type=_names, default=",".join(BUILDERS), help="default: %(default)s")
    add(
        "--lr",
        type=_rates,
        help="in place of the searched: one for all, or adam=1e-3,soap_fast=...",
    )
    add("--steps", type=positive(int), help=f"default: {TRAIN_STEPS}, in a search {SEARCH_STEPS}")
    add("--batch", type=positive(int), default=8, help="crops per step (default: %(default)s)")
    add("--crop", type=_crop, default=64, help="side in pixels (default: %(default)s)")
    add("--lambda", dest="lam", type=positive(float), default=0.013, help="default: %(default)s")
    add("--width", type=positive(int), default=48, help="channels (default: %(default)s)")
    add("--seed", type=_seed, default=0, help="of weights, crops, noise (default: %(default)s)")
    add("--precondition-frequency", type=positive(int), default=10, help="default: %(default)s")
    add("--threads", type=positive(int), help="of the CPU (default: torch's choice)")
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")


def _crop(text: str) -> int:
    side, stride = int(text), MeanScaleHyperprior.stride
    if side <= 0 or side % stride:
        raise argparse.ArgumentTypeError(f"{text} is not a positive multiple of {stride}")
    return side


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in BUILDERS:
            raise argparse.ArgumentTypeError(f"no optimizer {name!r}: take {', '.join(BUILDERS)}")
    return names


def _rates(text: str) -> dict[str, float]:
    """A rate for every optimizer, from `1e-3` or from `adam=1e-3,soap_fast=3e-3`."""
    if "=" not in text:
        return dict.fromkeys(BUILDERS, _rate(text))
    pairs = [pair.partition("=") for pair in text.split(",")]
    _names(",".join(name for name, _, _ in pairs))
    return {name.strip(): _rate(rate) for name, _, rate in pairs}


def _rate(text: str) -> float:
    try:
        return float(positive(float)(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate") from None


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is outside [0, 2^63)")
    return seed
