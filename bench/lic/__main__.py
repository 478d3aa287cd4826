"""Command line: `python -m bench.lic train`, its defaults being the demo, and `shapes`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from bench import envelope
from bench.command import BadInput, check_target
from bench.lic import inventory, report
from bench.lic.arguments import SEARCH_STEPS, TRAIN_STEPS, parse
from bench.lic.config import Config
from bench.lic.data import Images, load
from bench.lic.demo import Demo, Interrupted
from bench.lic.models import MODELS, MeanScaleHyperprior
from bench.lic.optimizers import BUILDERS
from bench.lic.progress import say
from bench.lic.search import RESULT, search, searched_rates

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        check_target(options.json)
        if options.command == "shapes":
            return _shapes(options)
        return _search(options) if options.search else _train(options)
    except BadInput as error:
        say(f"python -m bench.lic: {error}")
        return 2
    except Interrupted as stopped:
        again = [*arguments, *([] if options.resume else ["--resume"])]
        say(f"{stopped}; go on with: python -m bench.lic {shlex.join(again)}")
        return INTERRUPTED
    except KeyboardInterrupt:
        say("stopped at once; --resume goes on from the last checkpoint, if there is one")
        return INTERRUPTED


def _shapes(options: argparse.Namespace) -> int:
    if options.model is None and options.json is not None:
        raise BadInput("--json is for one model: name it by --model")
    names = list(MODELS) if options.model is None else [options.model]
    inventories = [inventory.describe(name, options.factor) for name in names]
    if options.json is not None:
        inventory.write(inventories[0], options.json)
    print(inventory.table(inventories), file=sys.stderr if options.json == "-" else sys.stdout)
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.json is not None and Path(options.json).is_dir():
        raise BadInput(f"--json {options.json} is a folder; name a file, or - for standard output")
    rates = _chosen_rates(options)
    photos = _photos(options)
    config = _config(options, options.steps or TRAIN_STEPS, rates, photos)
    demo = Demo(config, photos, Path(options.out), options.checkpoint_every)
    demo.resume() if options.resume else demo.start()
    demo.run()
    results = [
        report.summarise(name, demo.finished[name], config)
        for name in config.optimizers
        if name in demo.finished
    ]
    text = report.table(results, demo.missing, config)
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    report.write(results, text, demo.folder, options.json)
    say(f"table.md, result.json, curves.png and the models are in {demo.folder}")
    return 0


def _chosen_rates(options: argparse.Namespace) -> dict[str, float]:
    if options.lr is None:
        return searched_rates(options.optimizers)
    if absent := [name for name in options.optimizers if name not in options.lr]:
        raise BadInput(f"--lr gives no rate for {', '.join(absent)}; add it, or limit --optimizers")
    return {name: options.lr[name] for name in options.optimizers}


def _search(options: argparse.Namespace) -> int:
    if options.json is None and set(options.optimizers) != set(BUILDERS):
        raise BadInput(
            f"a search of some optimizers would leave {RESULT.name} without the others' rates; "
            "name another file by --json, or search them all"
        )
    if options.resume or options.lr is not None:
        raise BadInput("--search tries its own rates from the start; leave out --resume and --lr")
    photos = _photos(options)
    config = _config(options, options.steps or SEARCH_STEPS, {}, photos)
    results = search(config, photos)
    for result in results:
        say(f"{result['optimizer']}: best learning rate {result['lr']:.3g}")
    envelope.write(options.json or str(RESULT), results)
    return 0


def _photos(options: argparse.Namespace) -> Images:
    photos = load(options.data, options.crop, MeanScaleHyperprior.stride)
    for name in photos.skipped:
        say(f"skipped {name}")
    if photos.skipped:
        say(f"{len(photos.skipped)} files skipped")
    say(photos.found)
    return photos


def _config(
    options: argparse.Namespace, steps: int, rates: dict[str, float], photos: Images
) -> Config:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Config(
        steps=steps,
        batch=options.batch,
        crop=options.crop,
        lam=options.lam,
        width=options.width,
        seed=options.seed,
        optimizers=options.optimizers,
        rates=rates,
        precondition_frequency=options.precondition_frequency,
        threads=torch.get_num_threads(),
        device=options.device,
        photos=photos.fingerprint(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
