"""`eval`: finished runs on images, and against each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.arguments import Parser, device
from bench.command import BadInput, check_target
from bench.lic.data import EvaluationSet, evaluation_set
from bench.lic.evaluation import report
from bench.lic.evaluation.evaluate import evaluate
from bench.lic.evaluation.runs import Run, group, read
from bench.lic.training import say
from bench.output import envelope


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "eval", help="bpp, PSNR, R-D curves, BD-rate, time to Adam's loss of finished runs"
    ).add_argument
    add("runs", metavar="RUN", nargs="+", help="folder that `train --out` has filled")
    add(
        "--data",
        metavar="DIR",
        action="append",
        help="folder of images, Kodak's for instance; may be repeated (default: scikit-image's "
        "photo that is never trained on)",
    )
    add(
        "--coded",
        action="store_true",
        help="write every image by a range coder too, and report the bits of its bytes",
    )
    add("--out", metavar="DIR", default="runs/eval", help="for the report (default: %(default)s)")
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    folder = Path(options.out)
    check_target(str(folder / "eval.json"), "--out")
    runs = _finished(options.runs)
    sets = _sets(options.data)
    evaluation = evaluate(group(runs), sets, options.device, options.coded)
    rows = report.results(evaluation)
    text = report.text(evaluation, rows)
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    report.write(evaluation, rows, text, folder)
    if options.json is not None:
        envelope.write(options.json, rows)
    return 0


def _finished(folders: list[str]) -> list[Run]:
    """The runs that have a model to evaluate: not those that diverged, which are named."""
    runs = [read(name) for name in dict.fromkeys(folders)]
    for one in runs:
        if one.summary["rd_loss"] is None:
            say(f"{one.name} diverged at step {one.summary['steps']}; it is left out")
    if not (left := [one for one in runs if one.summary["rd_loss"] is not None]):
        raise BadInput("every run named has diverged; train with a smaller --lr")
    return left


def _sets(folders: list[str] | None) -> list[EvaluationSet]:
    """One for each folder, told apart by their names."""
    sets = [evaluation_set(folder) for folder in folders] if folders else [evaluation_set(None)]
    names = [data.name for data in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"--data names {', '.join(twice)} more than once; leave one out")
    return sets
