"""`demo`: the same small model from the same seed with three optimizers, one after the other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import envelope
from bench.command import Parser, check_target, positive
from bench.files import BadInput, writing
from bench.lic.commands import options as shared
from bench.lic.data import Images
from bench.lic.evaluation.curves import first_at
from bench.lic.optimizers import BUILDERS, TREATMENT
from bench.lic.search import searched_rates
from bench.lic.style import LABELS, lines, loss_frame, number, plain_text, write_page
from bench.lic.style import table as markdown
from bench.lic.training import WARMUP, Config, Training, say
from bench.lic.training.runs import CHECKPOINT, CHECKPOINT_EVERY, start_anew
from bench.lic.training.runs import run as run_training

STEPS = 1200  # 4 minutes with all three optimizers on two cores


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "demo", help="train the same small model with each optimizer, and compare"
    ).add_argument
    shared.add_images(add, crop=64)
    shared.add_files(add, "runs/lic", str(CHECKPOINT_EVERY))
    add(
        "--optimizers",
        type=_known,
        default=",".join(shared.DEMO_OPTIMIZERS),
        help="default: %(default)s",
    )
    add(
        "--lr",
        type=_rates,
        help="in place of the searched: one for all, or adam=1e-3,soap_fast=...",
    )
    add("--steps", type=positive(int), default=STEPS, help="default: %(default)s")
    add(
        "--factor",
        type=positive(float),
        default=shared.DEMO_FACTOR,
        help="of the hyperprior's widths (default: %(default)g)",
    )
    shared.add_run(add, batch=8)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    options.model = shared.DEMO_MODEL
    rates = _chosen_rates(options)
    shared.use_threads(options.threads)
    images = shared.images(options)
    settings = shared.settings(options, images)
    configs = [
        Config(optimizer=name, lr=rates[name], steps=options.steps, **settings)
        for name in options.optimizers
    ]
    folder = Path(options.out)
    every = options.checkpoint_every or CHECKPOINT_EVERY
    results, missing = run_all(
        configs, images, folder, resume=options.resume, checkpoint_every=every
    )
    text = table(results, missing, configs[0])
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    write(results, text, folder, options.json)
    say(f"table.md, result.json, curves.png and the models are in {folder}")
    return 0


def _known(text: str) -> tuple[str, ...]:
    """The report has labels and colours for these."""
    names = shared.optimizers(text)
    for name in names:
        if name not in BUILDERS:
            raise argparse.ArgumentTypeError(
                f"no optimizer {name!r}: take {', '.join(BUILDERS)}; `train` takes any"
            )
    return names


def _rates(text: str) -> dict[str, float]:
    """A rate for every optimizer, from `1e-3` or from `adam=1e-3,soap_fast=3e-3`."""
    if "=" not in text:
        return dict.fromkeys(BUILDERS, shared.rate(text))
    pairs = [pair.partition("=") for pair in text.split(",")]
    _known(",".join(name for name, _, _ in pairs))
    return {name.strip(): shared.rate(rate) for name, _, rate in pairs}


def _chosen_rates(options: argparse.Namespace) -> dict[str, float]:
    if options.lr is None:
        return searched_rates(options.optimizers)
    if absent := [name for name in options.optimizers if name not in options.lr]:
        raise BadInput(f"--lr gives no rate for {', '.join(absent)}; add it, or limit --optimizers")
    return {name: options.lr[name] for name in options.optimizers}


def run_all(
    configs: list[Config], images: Images, folder: Path, *, resume: bool, checkpoint_every: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run each config in the folder of its optimizer's name, or what `resume` finds unfinished.

    Returns:
        The summaries, and of each optimizer that could not be imported why.

    Raises:
        Interrupted: on Ctrl-C, after the checkpoint was written.
        BadInput: there is nothing to resume, or none of the optimizers is installed.
    """
    names = tuple(config.optimizer for config in configs)
    if not resume:
        start_anew(folder, ("", *names))
    elif not any((folder / name / CHECKPOINT).exists() for name in names):
        raise BadInput(f"no checkpoint at {folder}; leave out --resume to start one")
    results: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, config in zip(names, configs, strict=True):
        try:
            training = Training(config, images)
        except ImportError as error:
            missing[name] = f"{name} is missing ({error})"
            say(f"{missing[name]}; the others run without it")
            continue
        results.append(
            run_training(training, folder / name, resume=resume, checkpoint_every=checkpoint_every)
        )
        del training  # before the next one is built: both at once would be the peak of memory
    if not results:
        raise BadInput(f"no optimizer to run: {'; '.join(missing.values())}")
    return results, missing


# What it leaves behind ----------------------------------------------------------------------------


def table(results: list[dict[str, Any]], missing: dict[str, str], config: Config) -> str:
    """The results as a Markdown table, with what has to be known to read it below."""
    rows = [
        {
            "optimizer": LABELS[result["optimizer"]],
            "lr": f"{result['lr']:.3g}",
            "R-D loss": number(result["rd_loss"], ".3f", "diverged"),
            "bpp": number(result["bpp"], ".3f", "diverged"),
            "PSNR dB": number(result["psnr"], ".2f", "diverged"),
            "ms / step": _pair(result, "step_ms"),
            "optimizer ms": _pair(result, "optimizer_ms"),
            "share": f"{result['optimizer_share']:.0%}",
        }
        for result in results
    ]
    return "\n".join([markdown(rows), "", *_notes(results, missing, config)]) + "\n"


def _notes(results: list[dict[str, Any]], missing: dict[str, str], config: Config) -> list[str]:
    notes = [
        f"{config.steps} steps of {config.batch} crops of {config.crop} x {config.crop}, "
        f"lambda {config.lam:g}, {config.model} at {config.factor:g} of its widths, seed "
        f"{config.seed}, on {config.device} with {config.threads} threads. R-D loss, bpp (the "
        "model's estimate; no bit stream is written) and PSNR are of the held-out photos, with "
        "rounding.",
        "Times are means (medians in brackets) after the first "
        f"{WARMUP} steps, refreshes included, evaluations and waiting for images not.",
        "The default learning rates come from `search`: for each optimizer the best of the same "
        "number of runs, by the loss on these same held-out photos.",
        *TREATMENT,
        *_reached(results),
        *(f"{reason}; it was left out." for reason in missing.values()),
    ]
    if config.device == "cpu":
        notes.append(
            "On the CPU and on such small layers this shows that soap_fast trains as well as the "
            "public SOAP; what larger models cost is measured by `python -m bench step`."
        )
    return [f"- {note}" for note in notes]


def _reached(results: list[dict[str, Any]]) -> list[str]:
    """Where the other runs first were as good as Adam at its end."""
    goal = next((r["rd_loss"] for r in results if r["optimizer"] == "adam"), None)
    if goal is None:
        return []
    lines = []
    for result in results:
        first = first_at(result["curve"], goal)
        if result["optimizer"] != "adam" and first is not None:
            lines.append(
                f"{LABELS[result['optimizer']]} had Adam's final R-D loss by step "
                f"{first['step']}, after {first['seconds']:.0f} s."
            )
    return lines


@plain_text()
def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Held-out R-D loss against steps and against seconds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    drawn = lines({result["optimizer"]: result["optimizer"] for result in results})
    for result in results:
        points = [point for point in result["curve"] if point["rd_loss"] is not None]
        if not points:
            continue
        label, style = LABELS[result["optimizer"]], drawn[result["optimizer"]]
        losses = [point["rd_loss"] for point in points]
        for axes, key, end in (
            (by_steps, "step", f"{losses[-1]:.2f}"),
            (by_seconds, "seconds", f"{points[-1]['seconds']:.0f} s"),
        ):
            places = [point[key] for point in points]
            axes.plot(places, losses, label=f"{label}: {end}", **style)
            axes.plot(places[-1], losses[-1], "o", color=style["color"], markersize=5)
    _dress(by_steps, "training steps", "final R-D loss")
    _dress(by_seconds, "seconds of training", "time for all steps")
    by_steps.set_ylabel("R-D loss of held-out photos")
    with writing(path):
        figure.savefig(path, dpi=150)


def _dress(axes: Axes, xlabel: str, legend: str) -> None:
    loss_frame(axes, xlabel)
    if axes.lines:  # none if every run diverged
        axes.legend(title=legend, frameon=False, loc="upper right", alignment="left")


def write(results: list[dict[str, Any]], text: str, folder: Path, json_target: str | None) -> None:
    """table.md, result.json and curves.png in `folder`; the same JSON to `json_target`."""
    envelope.write(str(folder / "result.json"), results, "lic demo")
    write_page(folder / "table.md", text)
    if json_target is not None:
        envelope.write(json_target, results, "lic demo")
    plot(results, folder / "curves.png")


def _pair(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:.1f} ({result[key + '_median']:.1f})"
