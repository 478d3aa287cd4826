"""`eval`: finished runs on images, and against each other."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from bench import envelope
from bench.command import Parser, check_target, device
from bench.files import BadInput, readable
from bench.lic.data import EvaluationSet, evaluation_set
from bench.lic.evaluation import report
from bench.lic.evaluation.quality import evaluate
from bench.lic.evaluation.runs import ACROSS, Run, group, read
from bench.lic.training import say


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
    add(
        "--across",
        choices=ACROSS,
        action="append",
        default=[],
        help="compare runs that differ in this, too: a shorter run with Adam's whole one",
    )
    add("--out", metavar="DIR", default="runs/eval", help="for the report (default: %(default)s)")
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    folder = Path(options.out)
    check_target(str(folder / "eval.json"), "--out")
    runs = finished(options.runs)
    sets = image_sets(options.data)
    evaluation = evaluate(group(runs, options.across), sets, options.device, options.coded)
    rows = report.results(evaluation)
    text = report.text(evaluation, rows)
    report.write(rows, text, folder)
    if options.json is not None:
        envelope.write(options.json, rows, "lic eval")
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    report.draw(evaluation, text, folder)
    return 0


def finished(folders: list[str]) -> list[Run]:
    """The runs that have a model to evaluate: not those that diverged, which are named."""
    runs = [read(name) for name in dict.fromkeys(folders)]
    for one in runs:
        if one.diverged:
            say(f"{one.name} diverged at step {one.summary['steps']}; it is left out")
    if not (left := [one for one in runs if not one.diverged]):
        raise BadInput("every run named has diverged; train with a smaller --lr")
    return left


def image_sets(folders: list[str] | None) -> list[EvaluationSet]:
    """One for each folder; those of one name, as CLIC's parts, with their folder's behind it."""
    if not folders:
        return [evaluation_set(None)]
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise BadInput("--data names a folder more than once; leave one out")
    sets = [evaluation_set(folder) for folder in folders]
    alike = [[p for p, b in zip(paths, sets, strict=True) if b.name == a.name] for a in sets]
    return [
        replace(data, name=f"{data.name} ({_end(path, others)})") if len(others) > 1 else data
        for data, path, others in zip(sets, paths, alike, strict=True)
    ]


def _end(path: Path, others: list[Path]) -> str:
    """As few of a path's last parts as tell all `others` apart."""
    count = 1
    while len({other.parts[-count:] for other in others}) < len(others):
        count += 1
    return readable("/".join(path.parts[-count:]))
