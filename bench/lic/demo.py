"""The demo: one model with each optimizer in turn, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import envelope
from bench.files import BadInput, write_text, writing
from bench.lic.data import Images
from bench.lic.evaluation.curves import first_at
from bench.lic.optimizers import TREATMENT
from bench.lic.style import LABELS, lines, loss_frame, number, plain_text
from bench.lic.style import table as markdown
from bench.lic.training import WARMUP, Config, Training, run, say
from bench.lic.training.runs import CHECKPOINT, start_anew


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
    write_text(folder / "table.md", text)
    if json_target is not None:
        envelope.write(json_target, results, "lic demo")
    plot(results, folder / "curves.png")


def _pair(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:.1f} ({result[key + '_median']:.1f})"


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
            run(training, folder / name, resume=resume, checkpoint_every=checkpoint_every)
        )
        del training  # before the next one is built: both at once would be the peak of memory
    if not results:
        raise BadInput(f"no optimizer to run: {'; '.join(missing.values())}")
    return results, missing
