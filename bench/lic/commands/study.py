"""`study`: the paper's claims, each beside what comes out on images of one's own."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import envelope
from bench.command import ROOT, Parser, check_target, device, positive
from bench.files import BadInput
from bench.lic.commands import options as shared
from bench.lic.commands import quantize
from bench.lic.commands.compare import add_changes, changed
from bench.lic.comparison import report as comparison_report
from bench.lic.comparison.plan import STUDIES, Trial, describe
from bench.lic.comparison.runner import Comparison, alone, compare
from bench.lic.data import EvaluationSet, load
from bench.lic.data.sources import Kept
from bench.lic.evaluation.curves import Curves, points, rate_distortion
from bench.lic.evaluation.int8 import ITERATIONS
from bench.lic.evaluation.quantization import Recipe
from bench.lic.evaluation.runs import Run, group
from bench.lic.models import stride
from bench.lic.study import figures, report
from bench.lic.study.watched import Watched
from bench.lic.style import write_page
from bench.lic.training import load_model

OPTIMIZERS = ("adam", "soap_fast")
COMMITTED = ROOT / "bench" / "results" / "comparison" / "compare.json"
CROP, IMAGES = 512, 32  # of calibration: pixels a side, and how many at most

Rows = list[dict[str, Any]]


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "study", help="train, score, quantise and compare: the paper's claims, one report"
    )
    command.set_defaults(resume=True)  # another call always goes on
    add = command.add_argument
    add("--preset", choices=STUDIES, default="cpu", help="default: %(default)s")
    add("--dry-run", action="store_true", help="print what would be run, and stop")
    add("--data", metavar="DIR", help="folder of images (default: scikit-image's photos)")
    add(
        "--work",
        metavar="DIR",
        help="where finished runs are kept, and not repeated (default: runs/study_PRESET)",
    )
    add("--out", metavar="DIR", help="for the report (default: the folder of --work)")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    add(
        "--threads",
        type=positive(int),
        help="of the CPU (default: the preset's, or torch's choice)",
    )
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")
    add(
        "--iterations",
        type=positive(int),
        default=ITERATIONS,
        help="of AdaRound, for each layer (default: %(default)s)",
    )
    add_changes(command)


def run(options: argparse.Namespace) -> int:
    preset = changed(STUDIES[options.preset], options)
    if others := [name for name in preset.optimizers if name not in OPTIMIZERS]:
        raise BadInput(f"--optimizers {', '.join(others)}: the study is of {', '.join(OPTIMIZERS)}")
    if options.dry_run:
        print(_plan(describe(preset)))
        return 0
    if preset.data and options.data is None:
        raise BadInput(f"--preset {options.preset} needs --data DIR with {preset.data}")
    if options.workers < 0:
        raise BadInput("--workers is not negative; take 0 or more")
    work = Path(options.work or f"runs/study_{options.preset}")
    out = Path(options.out or work)
    check_target(str(work / "run"), "--work")
    check_target(str(out / "study.json"), "--out")
    settings: dict[str, Any] = {
        "device": options.device,
        "threads": shared.use_threads(options.threads or preset.threads),
        "amp": options.amp,
        "compile": options.compile,
    }
    found = compare(
        preset,
        options.data,
        work,
        settings,
        options.workers,
        training=Watched,
        known=_searches(COMMITTED),
    )
    quantized = [row for trial in preset.trials for row in _quantized(found, trial, work, options)]
    _write(found, quantized, out, options)
    return 0


def _plan(runs: str) -> str:
    return "\n".join(
        [
            runs,
            "- rates: those of the committed comparison where all settings of its search are equal",
            "- along each run, after every fourth evaluation: intra-step and inter-step scores, "
            "kurtosis of layers and latents",
            "- at the end of each run of adam and of soap_fast at the compared frequency: W8A8 by "
            f"{'; '.join(quantize.WAYS)}. Ranges and roundings come from images trained on, bits "
            "and PSNR are of those held out",
        ]
    )


def _searches(path: Path) -> Rows:
    """The searches of the committed comparison; none where it is not there."""
    try:
        rows: Rows = json.loads(path.read_text())["results"]
    except FileNotFoundError:
        return []
    return [row for row in rows if row["kind"] == "search"]


# Quantisation


def _compared(comparison: Comparison, trial: Trial) -> list[Run]:
    """Runs of Adam, and of soap_fast at the compared frequency, that have an end."""
    return [
        run
        for run in comparison.runs
        if (run.config["model"], run.config["factor"]) == (trial.model, trial.factor)
        and run.config["precondition_frequency"] == comparison.preset.frequency
        and not run.diverged
    ]


def _quantized(
    comparison: Comparison, trial: Trial, work: Path, options: argparse.Namespace
) -> Rows:
    """Rows of `quantize` for one model's runs, taken once and kept."""
    chosen = _compared(comparison, trial)
    if not chosen:
        return []
    recipe = Recipe(iterations=options.iterations)
    of = {"kind": "recipe", "runs": [run.folder.name for run in chosen], **asdict(recipe)}
    path = work / f"{trial.model}_{trial.factor:g}" / "quantized.json"
    with alone(path):
        if path.exists():
            kept, *rows = json.loads(path.read_text())["results"]
            if kept == of:
                return list(rows)
        images = load(options.data, trial.crop, stride(trial.model, trial.factor))
        held_out = [Kept(f"held out {place}", one) for place, one in enumerate(images.held_out)]
        sets = [EvaluationSet("held-out images", images.found, list(held_out))]
        calibration = EvaluationSet("images trained on", images.found, list(images.training))
        groups = group(chosen)
        read = quantize.Calibration(calibration, CROP, IMAGES)
        rows = quantize.measured(groups, sets, read, recipe, options.device).rows(groups)
        envelope.write(str(path), [of, *rows], "lic study")
    return rows


# The report


def _write(comparison: Comparison, quantized: Rows, out: Path, options: argparse.Namespace) -> None:
    """study.json, report.md and pictures in `out`."""
    rows = [*comparison_report.results(comparison), *report.results(comparison, quantized)]
    envelope.write(str(out / "study.json"), report.kept([*rows, *quantized]), "lic study")
    found = report.text([row for row in rows if row["kind"] in ("claim", "seen")])
    pages = [found, "## Training\n", comparison_report.text(comparison, rows)]
    if quantized:
        pages.append(quantize.text(quantized, ["held-out images, as they are in training"]))
    page = "\n".join(["# The study", "", *pages])
    print("\n".join(pages))
    write_page(out / "report.md", page)  # before anything is drawn
    names = ["losses", "scores"]
    comparison_report.draw_losses(comparison, out / "losses.png")
    figures.along(comparison, out / "scores.png")
    if latents := _latents(comparison, options):
        figures.layers(comparison, latents, out / "outliers.png")
        names.append("outliers")
    if quantized:
        curves, optimizers = _curves(quantized)
        rate_distortion(curves, out / "rate_distortion.png", optimizers)
        names.append("rate_distortion")
    shown = "\n\n".join(f"![{name.replace('_', '-')}]({name}.png)" for name in names)
    write_page(out / "report.md", f"{page}\n{shown}\n")


@torch.no_grad()
def _latents(
    comparison: Comparison, options: argparse.Namespace
) -> dict[tuple[str, float], dict[str, Tensor]]:
    """y of the first held-out image, by each optimizer's first run that has an end."""
    found: dict[tuple[str, float], dict[str, Tensor]] = {}
    names = {"adam": "adam", "soap_fast": f"soap_fast_{comparison.preset.frequency}"}
    for trial in comparison.preset.trials:
        images = load(options.data, trial.crop, stride(trial.model, trial.factor))
        for members in group(_compared(comparison, trial)):
            for run in members.runs:
                of_it = found.setdefault((members.name, run.lam), {})
                if names[run.optimizer] not in of_it:
                    model, _ = load_model(run.folder)
                    image = images.held_out[0][None].float() / 255
                    of_it[names[run.optimizer]] = model.get_submodule("analysis")(image)
    return found


def _curves(quantized: Rows) -> tuple[Curves, dict[str, str]]:
    """R-D points, float and by AdaRound with ranges of all values; and each one's optimizer."""
    measured: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    optimizers = {}
    for row in quantized:
        if row["kind"] == "quantized" and row["quantized"] in (quantize.FLOAT, report.LEAST):
            name = f"{row['variant']}, {'float' if row['quantized'] == quantize.FLOAT else 'W8A8'}"
            optimizers[name] = row["variant"].partition(" (")[0]
            of_set = measured.setdefault((row["group"], row["set"]), {})
            of_set.setdefault(name, []).append((row["lam"], row["bpp"], row["psnr"]))
    curves = {
        key: {name: points(found) for name, found in variants.items()}
        for key, variants in measured.items()
    }
    return curves, optimizers
