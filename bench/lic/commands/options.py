"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from typing import Any

import torch

from bench.command import device, positive
from bench.files import BadInput
from bench.lic.data import Images, load
from bench.lic.models import MODELS, stride
from bench.lic.optimizers import BUILDERS
from bench.lic.training import say
from bench.lic.training.config import PRECISIONS, SCHEDULES

Add = Callable[..., argparse.Action]

# The demo's model and optimizers, whose search also gives the learning rates.
DEMO_MODEL, DEMO_FACTOR = "hyperprior", 0.25
DEMO_OPTIMIZERS = ("adam", "soap_fast", "pytorch_optimizer")


def add_images(add: Add, crop: int) -> None:
    add("--data", metavar="DIR", help="folder of images (default: scikit-image's photos)")
    add("--crop", type=int, default=crop, help="side in pixels (default: %(default)s)")
    add("--no-flip", dest="flip", action="store_false", help="mirror none of the crops")


def add_model(add: Add, model: str, factor: float) -> None:
    add(
        "--model",
        default=model,
        help=f"of {', '.join(MODELS)}; or package.module:Class, as CompressAI has them "
        "(default: %(default)s)",
    )
    add(
        "--factor",
        type=positive(float),
        default=factor,
        help="of all widths (default: %(default)g)",
    )


def add_run(add: Add, batch: int) -> None:
    """What belongs to a run whatever its model and its optimizer are."""
    add("--batch", type=positive(int), default=batch, help="crops per step (default: %(default)s)")
    add(
        "--lambda",
        dest="lam",
        type=positive(float),
        default=0.013,
        help="weight of the distortion; usual are 0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483 "
        "(default: %(default)s)",
    )
    add("--seed", type=seed, default=0, help="of weights, crops, noise (default: %(default)s)")
    add("--precondition-frequency", type=positive(int), default=10, help="default: %(default)s")
    add("--threads", type=positive(int), help="of the CPU (default: torch's choice)")
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")


def add_recipe(add: Add) -> None:
    """How the rate falls, in what precision, and who reads the images; see `recipe`."""
    add("--schedule", choices=SCHEDULES, default="cosine", help="default: %(default)s")
    add("--milestones", type=int, nargs="+", default=[], metavar="STEP", help="of multistep")
    add("--gamma", type=positive(float), default=0.1, help="of multistep and plateau (0.1)")
    add("--patience", type=int, default=10, help="of plateau, in evaluations (default: 10)")
    add("--amp", choices=PRECISIONS, help="half precision, but for likelihoods (default: none)")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")


def check_recipe(options: argparse.Namespace) -> None:
    """Of `add_recipe`, what would else be found out late.

    Raises:
        BadInput: in one line.
    """
    if options.workers < 0 or options.patience < 0:
        raise BadInput("--workers and --patience are not negative; take 0 or more")
    falling = sorted(set(options.milestones))
    if (options.schedule == "multistep") != bool(options.milestones):
        raise BadInput("--milestones and --schedule multistep belong together; give both, or none")
    if options.milestones != falling or (falling and falling[0] < 1):
        raise BadInput("--milestones are steps, each later than the one before, from 1 on")


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of a Config that `add_recipe` is about; the workers are none of it."""
    names = ("schedule", "gamma", "patience", "amp")
    return {
        **{name: getattr(options, name) for name in names},
        "milestones": tuple(options.milestones),
    }


def use_threads(number: int | None) -> int:
    """Let torch use so many threads of the CPU, or leave its choice; how many they are."""
    if number is not None:
        torch.set_num_threads(number)
    return torch.get_num_threads()


def add_files(add: Add, folder: str, checkpoints: str) -> None:
    """Where files go, and whether those there are taken up.

    Args:
        checkpoints: how often they are written unless that is told.
    """
    add("--out", metavar="DIR", default=folder, help="for results (default: %(default)s)")
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add(
        "--checkpoint-every",
        type=positive(int),
        metavar="STEPS",
        help=f"steps between checkpoints in --out (default: {checkpoints})",
    )


def images(options: argparse.Namespace) -> Images:
    """The images of --data, which --model and --crop fit.

    Raises:
        BadInput: they do not fit, or there are none.
    """
    multiple = stride(options.model, options.factor)
    if options.crop <= 0 or options.crop % multiple:
        raise BadInput(
            f"--crop {options.crop} is not a positive multiple of {multiple}, as {options.model} "
            "needs it"
        )
    found = load(options.data, options.crop, multiple)
    for name in found.skipped:
        say(f"skipped {name}")
    if found.skipped:
        say(f"{len(found.skipped)} files skipped")
    say(found.found)
    return found


def settings(options: argparse.Namespace, found: Images) -> dict[str, Any]:
    """Fields of a Config that `add_model`, `add_run` and `add_images` are about.

    As many threads as torch has now: see `use_threads`.
    """
    names = ("model", "factor", "batch", "crop", "flip", "lam", "seed", "precondition_frequency")
    return {
        **{name: getattr(options, name) for name in names},
        "device": options.device,
        "threads": torch.get_num_threads(),
        "images": found.fingerprint(),
    }


def optimizers(text: str) -> tuple[str, ...]:
    """Names by comma, each once: those known here, or package.module:Class."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in BUILDERS and ":" not in name:
            known = ", ".join(BUILDERS)
            raise argparse.ArgumentTypeError(
                f"no optimizer {name!r}: take {known}, or package.module:Class"
            )
    return names


def optimizer(text: str) -> str:
    names = optimizers(text)
    if len(names) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} are several: `demo` and `search` take them")
    return names[0]


def option(text: str) -> tuple[str, Any]:
    """`name=value`; the value as Python writes it, or else the text itself."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def rate(text: str) -> float:
    try:
        return float(positive(float)(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate") from None


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is outside [0, 2^63)")
    return number
