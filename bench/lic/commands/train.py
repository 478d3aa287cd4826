"""`train`: one model with one optimizer, in one process or in several that torchrun starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import envelope
from bench.command import Parser, check_target, positive
from bench.files import BadInput
from bench.lic.commands import options as shared
from bench.lic.data import Images
from bench.lic.training import Training, say
from bench.lic.training.config import Config
from bench.lic.training.history import check_board
from bench.lic.training.processes import Processes, joined, started
from bench.lic.training.runs import CHECKPOINT, start_anew
from bench.lic.training.runs import run as run_training

STEPS = 1000
# Unless --checkpoint-every says otherwise; of a large model one is a gigabyte, with SOAP's factors.
CHECKPOINT_EVERY, CHECKPOINT_SECONDS = 500, 60.0
RATE = 1e-4  # with which the authors of all four models train, by Adam
MODES = ("default", "reduce-overhead", "max-autotune")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("train", help="train one model with one optimizer").add_argument
    shared.add_model(add, "elic", 1.0)
    shared.add_images(add, crop=256)
    often = f"{CHECKPOINT_EVERY}, and {CHECKPOINT_SECONDS:g} seconds at least"
    shared.add_files(add, "runs/train", often)
    _add_optimizer(add)
    add("--steps", type=positive(int), help=f"default: {STEPS}")
    add("--epochs", type=positive(float), help="in place of --steps: times every image is drawn")
    shared.add_run(add, batch=8)
    shared.add_recipe(add)
    add("--channels_last", "--channels-last", action="store_true", help="layout of the maps")
    add("--compile", choices=MODES, nargs="?", const="default", help="by torch.compile, this mode")
    add("--evaluate-every", type=positive(int), metavar="STEPS", help="default: 40 times in all")
    add(
        "--sharding",
        choices=("none", "refresh", "state"),
        default="none",
        help="refresh: each process computes a share of soap_fast's bases; state: each steps a "
        "share of the parameters and keeps their state (default: %(default)s)",
    )
    add("--tensorboard", metavar="DIR", help="record for TensorBoard there")


def _add_optimizer(add: shared.Add) -> None:
    add(
        "--optimizer",
        type=shared.optimizer,
        default="soap_fast",
        help="adam, soap_fast, pytorch_optimizer or package.module:Class (default: %(default)s)",
    )
    add(
        "--optimizer-option",
        type=shared.option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the optimizer itself; may be repeated",
    )
    add(
        "--lr",
        type=shared.rate,
        default=RATE,
        help="learning rate (default: %(default)g, the models' authors' for Adam; see `search`)",
    )


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    check_board(options.tensorboard)
    _check(options)
    with joined(options.device) as processes:
        return _train(options, processes)


def _train(options: argparse.Namespace, processes: Processes) -> int:
    shared.use_threads(options.threads)
    images = shared.images(options)
    known = len(images.skipped)
    config = _config(options, images, processes.world)
    try:
        training = Training(config, images, processes, options.workers, options.sharding)
    except ImportError as error:
        raise BadInput(f"{config.optimizer} is missing ({error}); install it") from None
    folder = Path(options.out)
    if options.resume and not (folder / CHECKPOINT).exists():
        raise BadInput(f"no checkpoint at {folder}; leave out --resume to start one")
    if not options.resume and processes.first:
        start_anew(folder)
    summary = run_training(
        training,
        folder,
        title=f"{config.model}, {config.optimizer}",
        resume=options.resume,
        checkpoint_every=options.checkpoint_every or CHECKPOINT_EVERY,
        checkpoint_seconds=0.0 if options.checkpoint_every else CHECKPOINT_SECONDS,
        board=options.tensorboard and Path(options.tensorboard),
    )
    # Those of a large folder are found when they are drawn, some by one process, some by another.
    skipped = set().union(*processes.from_all(images.skipped))
    if len(skipped) > known:
        say(f"{len(skipped)} files skipped in all")
    if processes.first:
        _show(summary, folder, options.json)
    return 0


def _show(summary: dict[str, Any], folder: Path, target: str | None) -> None:
    if summary["diverged"]:
        say(f"diverged at step {summary['steps']}; take a smaller --lr")
    else:
        say(
            f"held out: R-D loss {summary['rd_loss']:.4f}, {summary['bpp']:.4f} bpp, "
            f"{summary['psnr']:.2f} dB after {summary['steps']} steps in {summary['seconds']:.0f} s"
        )
    say(f"model.pt, result.json and checkpoint.pt are in {folder}")
    if target is not None:
        envelope.write(target, [summary], "lic train")


def _check(options: argparse.Namespace) -> None:
    """What would else be found out late.

    Raises:
        BadInput: in one line.
    """
    world = started()[1]
    if options.batch % world:
        raise BadInput(f"--batch {options.batch} cannot be shared by {world} processes alike")
    if options.steps is not None and options.epochs is not None:
        raise BadInput("--steps and --epochs both say how long; leave one out")
    if options.sharding != "none" and options.optimizer != "soap_fast":
        raise BadInput(f"--sharding is soap_fast's; leave it out with {options.optimizer}")
    if options.sharding != "none" and world == 1:
        raise BadInput("--sharding shares work among processes; start several by torchrun")
    shared.check_recipe(options)


def _config(options: argparse.Namespace, images: Images, world: int) -> Config:
    steps = options.steps or STEPS
    if options.epochs is not None:
        steps = max(1, round(options.epochs * len(images.training) / options.batch))
    return Config(
        **shared.settings(options, images),
        **shared.recipe(options),
        optimizer=options.optimizer,
        optimizer_options=dict(options.optimizer_option),
        lr=options.lr,
        steps=steps,
        evaluate_every=options.evaluate_every or 0,
        channels_last=options.channels_last,
        compile=options.compile,
        world=world,
    )
