"""`compare`: optimizers on models, with searched rates and several seeds; one report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import envelope
from bench.command import Parser, check_target, device, positive
from bench.files import BadInput
from bench.lic.commands import options as shared
from bench.lic.commands.train import MODES
from bench.lic.comparison import report
from bench.lic.comparison.plan import PRESETS, Preset, describe
from bench.lic.comparison.runner import compare
from bench.lic.training.config import PRECISIONS


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "compare", help="train models with several optimizers and seeds; one report"
    )
    command.set_defaults(resume=True)  # another call always goes on
    add = command.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="default: %(default)s")
    add("--dry-run", action="store_true", help="print what would be run, and stop")
    add("--data", metavar="DIR", help="folder of images (default: scikit-image's photos)")
    add(
        "--work",
        metavar="DIR",
        help="where finished runs are kept, and not repeated (default: runs/compare_PRESET)",
    )
    add("--out", metavar="DIR", help="for the report (default: the folder of --work)")
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    add(
        "--threads",
        type=positive(int),
        help="of the CPU (default: the preset's, or torch's choice)",
    )
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")
    add_changes(command)


def add_changes(command: Parser) -> None:
    add = command.add_argument_group("in place of the preset's").add_argument
    add("--models", help="those of the preset to take, by comma")
    add("--optimizers", type=shared.optimizers, help="by comma; the first ones of a model's turn")
    add("--factor", type=positive(float), help="of all widths, of every model")
    add("--steps", type=positive(int), help="of every run")
    add(
        "--search",
        dest="searched",
        action=argparse.BooleanOptionalAction,
        help="whether each optimizer's rate is searched, by runs as long as those compared",
    )
    add("--grid", type=shared.rate, nargs="+", metavar="RATE", help="that a search starts with")
    add("--search-seeds", type=positive(int), help="of each rate near the best")
    add("--batch", type=positive(int), help="of every model")
    add(
        "--lambdas",
        type=positive(float),
        nargs="+",
        help="of every model; 4 and more give BD-rates",
    )
    add("--seeds", type=positive(int))
    add("--amp", choices=PRECISIONS, help="half precision, but for likelihoods (default: none)")
    add("--compile", choices=MODES, nargs="?", const="default", help="by torch.compile, this mode")
    add(
        "--checkpoint-every", type=positive(int), metavar="STEPS", help="of a run that is under way"
    )
    add("--frequencies", type=int, nargs="*", help="of soap_fast, beside the compared one")


def run(options: argparse.Namespace) -> int:
    preset = changed(PRESETS[options.preset], options)
    if options.dry_run:
        print(describe(preset))
        return 0
    if preset.data and options.data is None:
        raise BadInput(f"--preset {options.preset} needs --data DIR with {preset.data}")
    if options.workers < 0:
        raise BadInput("--workers is not negative; take 0 or more")
    work = Path(options.work or f"runs/compare_{options.preset}")
    out = Path(options.out or work)
    check_target(options.json)
    check_target(str(work / "run"), "--work")
    check_target(str(out / "compare.json"), "--out")
    settings: dict[str, Any] = {
        "device": options.device,
        "threads": shared.use_threads(options.threads or preset.threads),
        "amp": options.amp,
        "compile": options.compile,
    }
    comparison = compare(preset, options.data, work, settings, options.workers)
    rows = report.results(comparison)
    text = report.text(comparison, rows)
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    report.write(comparison, rows, text, out)
    if options.json is not None:
        envelope.write(options.json, rows, "lic compare")
    return 0


def changed(preset: Preset, options: argparse.Namespace) -> Preset:
    """The preset with what the options say in place of its own."""
    trials = {trial.model: trial for trial in preset.trials}
    names = options.models.split(",") if options.models else list(trials)
    if absent := [name for name in names if name not in trials]:
        raise BadInput(f"--models {', '.join(absent)}: the preset has {', '.join(trials)}")
    fields = {name: getattr(options, name) for name in ("factor", "steps", "searched", "batch")}
    given = {name: value for name, value in fields.items() if value is not None}
    if options.lambdas:
        given["lambdas"] = tuple(sorted(set(options.lambdas)))
    names_of_preset = (
        *("optimizers", "seeds", "frequencies", "checkpoint_every"),
        *("grid", "search_seeds"),
    )
    whole = {name: getattr(options, name) for name in names_of_preset}
    whole = {name: value for name, value in whole.items() if value is not None}
    if any(frequency < 1 for frequency in whole.get("frequencies", ())):
        raise BadInput("--frequencies are positive numbers of steps")
    lists = ("frequencies", "grid")
    whole = {**whole, **{name: tuple(whole.get(name, getattr(preset, name))) for name in lists}}
    chosen = tuple(replace(trials[name], **given) for name in dict.fromkeys(names))
    return replace(preset, trials=chosen, **whole)
