"""A comparison as Markdown, pictures and a result file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import envelope
from bench.files import writing
from bench.lic.comparison.differences import RULE, differences, sentences
from bench.lic.comparison.plan import Preset, describe, variants
from bench.lic.comparison.runner import Comparison
from bench.lic.comparison.statistics import Row, band, bd_rates, by_variant, curves, of_variant
from bench.lic.evaluation.curves import FEWEST, rate_distortion
from bench.lic.evaluation.runs import PACKAGES, Group, Run, group
from bench.lic.optimizers import TREATMENT
from bench.lic.style import lines, loss_frame, number, plain_text, share, table, write_page
from bench.lic.training import WARMUP


@plain_text()
def draw_losses(comparison: Comparison, path: Path) -> None:
    """A row for every model and lambda: against steps, and against seconds of training.

    Means over seeds; at the compared frequency from the lowest to the highest too.
    """
    parts = [
        (members, lam)
        for members in group(comparison.runs)
        for lam in sorted({run.lam for run in members.runs})
    ]
    figure = Figure(figsize=(11, 0.3 + 3.8 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    for (by_steps, by_seconds), (members, lam) in zip(panels, parts, strict=True):
        chosen = variants(comparison.preset)
        drawn = lines({variant.name: variant.optimizer for variant in chosen})
        for variant in chosen:
            look = drawn[variant.name]
            runs = of_variant(members, lam, variant)
            filled = variant.frequency == comparison.preset.frequency
            _draw(by_steps, runs, "step", filled, label=variant.name, **look)
            _draw(by_seconds, runs, "seconds", filled, label=variant.name, **look)
        _dress(by_steps, members, lam, "training steps")
        _dress(by_seconds, members, lam, "seconds of training")
        by_steps.set_ylabel("R-D loss, held out")
        if by_steps.lines:
            by_steps.legend(frameon=False, fontsize=8, loc="best", handlelength=4)
    with writing(path):
        figure.savefig(path, dpi=110)


def _draw(axes: Axes, runs: list[Run], key: str, filled: bool, **look: Any) -> None:
    """Mean over seeds, and from the lowest to the highest of them; seconds are means too."""
    values, places = (band(runs, what) for what in ("rd_loss", key))
    if not values:
        return
    x = [fmean(column) for column in places[: len(values)]]
    axes.plot(x, [fmean(column) for column in values], **look)
    if not filled:
        return
    low, high = ([pick(column) for column in values] for pick in (min, max))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _dress(axes: Axes, members: Group, lam: float, xlabel: str) -> None:
    loss_frame(axes, xlabel)
    axes.set_title(f"{members.name}, lambda {lam:g}")


NOTES = (
    "Final R-D loss, bpp and PSNR are of the held-out images after the last step, with rounding: "
    "means over seeds, with the standard deviation over seeds.",
    RULE,
    "To Adam's loss: the first evaluation (of {evaluations} or a few more) that was no worse than "
    "the last of Adam's run of the same seed; means over the seeds that got there, with the "
    "standard deviation, and the part of Adam's whole run. Of Adam's two betas those with the "
    "lower mean final loss are the ones to reach. Adam's own row tells when it first was "
    "as good as at its end: before it, where its loss still swings. All runs follow their whole "
    "schedule, whose rate is still high at that point: a shorter schedule would get there in "
    "fewer steps.",
    "A row at soap_fast's rate is of another implementation of its algorithm, at the rate that was "
    "searched for soap_fast: apart from roundings the two do the same there. Where they differ at "
    "rates of their own, and not at one rate, it is the search that differs.",
    "Flat: the range of rates around the best whose mean final loss exceeds its by no more than "
    "the standard deviation over its seeds, as a factor from the lowest to the highest; at least, "
    "where trying ended before the loss rose.",
    "Seconds are of training: forward, backward, clipping, both optimizers; no evaluations, no "
    "files. Runs of all variants take turns seed by seed.",
    "soap_fast at its other frequencies takes the rate that was searched at the compared one.",
    f"Times of a step are means after the first {WARMUP}, refreshes included.",
    *TREATMENT,
)


def results(comparison: Comparison) -> list[Row]:
    """Rows of kinds: `total`, `variant` (means over seeds), `difference` (of two optimizers),
    `bd_rate` (where there are enough lambdas), `search`, and `run` (each as it came, with the
    machine, versions and commit it is of).
    """
    found = by_variant(comparison.preset, comparison.runs)
    apart = differences(found, comparison.preset.frequency)
    return [
        {"kind": "total", **_total(comparison)},
        *({"kind": "variant", **row} for row in found),
        *({"kind": "difference", **row} for row in apart),
        *(
            {"kind": "bd_rate", **row}
            for row in bd_rates(curves(comparison.preset, comparison.runs))
        ),
        *({"kind": "search", **row} for row in comparison.searches),
        *({"kind": "run", **_origin(run), **run.summary} for run in comparison.runs),
    ]


def _total(comparison: Comparison) -> Row:
    return {
        "runs": len(comparison.runs),
        "searching_runs": sum(
            len(one["rd_losses"])
            for found in comparison.searches
            if not found.get("known")
            for one in found["tried"]
        ),
        "wall_seconds": comparison.wall_seconds,
        "untimed": comparison.untimed,
        "threads": sorted({run.config["threads"] for run in comparison.runs}),
    }


def _origin(run: Run) -> Row:
    return {"machine": run.machine, "versions": run.versions, "commit": run.commit}


def text(comparison: Comparison, rows: list[Row]) -> str:
    """The report in Markdown, without the picture."""
    found = [row for row in rows if row["kind"] == "variant"]
    parts = [describe(comparison.preset), f"- {comparison.found}"]
    if comparison.skipped:
        first = Path(comparison.skipped[0]).name  # a report is read elsewhere
        parts.append(f"- images skipped: {len(comparison.skipped)}, the first {first}")
    parts += [f"- {reason}; it was left out" for reason in comparison.missing]
    parts += [_time(comparison), *_machines(comparison), *_commits(comparison)]
    if apart := [row for row in rows if row["kind"] == "difference"]:
        parts += ["", "## What these seeds can tell", "", *sentences(apart)]
    for title, made in (
        ("Quality and steps to Adam's final loss", _quality),
        ("What a step costs", _cost),
    ):
        chosen = [row for row in found if row["frequency"] in (None, comparison.preset.frequency)]
        parts += ["", f"## {title}", "", table(made(chosen))]
    if compared := [row for row in rows if row["kind"] == "bd_rate"]:
        parts += ["", "## BD-rate of the held-out images", "", table(_of_bd_rates(compared))]
    if any(row["frequency"] not in (None, comparison.preset.frequency) for row in found):
        chosen = sorted(
            (row for row in found if row["optimizer"] == "soap_fast"),
            key=lambda row: (row["group"], row["lam"], row["frequency"]),
        )
        parts += ["", "## soap_fast by the frequency of its refreshes", ""]
        parts += [table(_by_frequency(chosen))]
    if comparison.searches:
        parts += ["", "## Searched learning rates", "", table(_searches(comparison.searches))]
    parts += ["", "## How to read this", "", *_notes(comparison.preset)]
    if limits := _limits(comparison):
        parts += ["", "## What this is too small to show", "", *(f"- {line}" for line in limits)]
    return "\n".join(parts) + "\n"


def _notes(preset: Preset) -> list[str]:
    return [f"- {note.format(evaluations=preset.evaluations)}" for note in NOTES]


def _machines(comparison: Comparison) -> list[str]:
    """One line for what the runs were made on, and a warning if it was more than one thing."""
    clocks = {str(sorted(run.clock.items(), key=str)): run.clock for run in comparison.runs}
    lines = []
    for clock in clocks.values():
        where = clock["gpu"] if str(clock["device"]).startswith("cuda") else clock["processor"]
        versions = ", ".join(f"{name} {clock[f'version of {name}']}" for name in PACKAGES)
        compiled = f", compiled ({clock['compile']})" if clock["compile"] else ""
        lines.append(
            f"- {where}, {_threads(clock['threads'])}, device {clock['device']}, "
            f"{clock['amp'] or 'float32'}{compiled}, {versions}"
        )
    if len(lines) > 1:
        lines.append("- not all runs were made on the same: times of different ones are left out")
    return lines


def _time(comparison: Comparison) -> str:
    total = _total(comparison)
    searching = total["searching_runs"]
    others = f" and {searching} that search rates" if searching else ""
    least = "at least " if total["untimed"] else ""
    threads = _threads(*total["threads"])
    return (
        f"- {total['runs']} runs{others}, {least}{total['wall_seconds'] / 60:.1f} minutes of "
        f"training and evaluations, {threads}"
    )


def _threads(*counts: int) -> str:
    return " or ".join(map(str, counts)) + (" thread" if counts == (1,) else " threads")


def _commits(comparison: Comparison) -> list[str]:
    """A warning where the code was not the same for all."""
    counts = Counter(commit or "unknown" for run in comparison.runs for commit in run.commits)
    if len(counts) < 2:
        return []
    named = ", ".join(
        f"{commit[:10]}{'+changes' * commit.endswith('+changes')} ({count} runs)"
        for commit, count in counts.items()
    )
    return [f"- the runs are of {len(counts)} commits: {named}"]


def _limits(comparison: Comparison) -> list[str]:
    lambdas = max(len(trial.lambdas) for trial in comparison.preset.trials)
    few = f"Values of lambda: {lambdas}; R-D curves and BD-rates need at least {FEWEST}."
    return [*comparison.preset.limits, *([few] if lambdas < FEWEST else [])]


def _quality(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            **_names(row),
            "lr": f"{row['lr']:.3g}",
            "final R-D loss": _loss(row),
            "bpp": number(row["bpp"], ".3f"),
            "PSNR dB": number(row["psnr"], ".2f"),
            "steps to Adam's loss": _to_adam(row, "steps", ".0f"),
            "+- steps": number(row["steps_to_adam_spread"], ".0f"),
            "seconds to Adam's loss": _to_adam(row, "seconds", ".1f"),
            "seeds": f"{row['reached']} of {row['compared']}" if row["compared"] else "-",
        }
        for row in rows
    ]


def _cost(rows: list[Row]) -> list[dict[str, Any]]:
    adams = {(row["group"], row["lam"]): row for row in rows if row["optimizer"] == "adam"}
    return [
        {
            **_names(row),
            "ms / step": number(row["step_ms"], ".1f"),
            "of Adam's": _ratio(row, adams.get((row["group"], row["lam"])), "step_ms"),
            "optimizer ms": number(row["optimizer_ms"], ".1f"),
            "optimizer's share": number(row["optimizer_share"], ".0%"),
            "seconds in all": number(row["seconds"], ".1f"),
            row["peak_memory_of"] or "memory": f"{row['peak_memory'] / 2**20:.1f} MiB",
        }
        for row in rows
    ]


def _by_frequency(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "model": row["group"],
            "lambda": f"{row['lam']:g}",
            "frequency": row["frequency"],
            "final R-D loss": _loss(row),
            "steps to Adam's loss": _to_adam(row, "steps", ".0f"),
            "seconds to Adam's loss": _to_adam(row, "seconds", ".1f"),
            "ms / step": number(row["step_ms"], ".1f"),
            "optimizer ms": number(row["optimizer_ms"], ".1f"),
            "optimizer's share": number(row["optimizer_share"], ".0%"),
        }
        for row in rows
    ]


def _of_bd_rates(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "against adam": row["reason"] or f"{row['percent']:+.2f} %",
        }
        for row in rows
    ]


def _searches(searches: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "model": f"{found['config']['model']} x {found['config']['factor']:g}",
            "optimizer": found["optimizer"],
            "best": f"{found['lr']:.3g}" + (" (at the edge)" if found["at_edge"] else ""),
            "flat": _flat(found["flat"]),
            "R-D loss by rate (seeds)": ", ".join(
                f"{one['lr']:.3g}: {number(one['rd_loss'], '.2f')} ({len(one['rd_losses'])})"
                for one in found["tried"]
            ),
        }
        for found in searches
    ]


def _flat(flat: Row) -> str:
    """`1.4x (0.0037 to 0.0052)`."""
    if flat["factor"] is None:
        return "-"
    least = "at least " if flat["at_least"] else ""
    return f"{least}{flat['factor']:.2g}x ({flat['low']:.3g} to {flat['high']:.3g})"


def write(comparison: Comparison, rows: list[Row], report: str, folder: Path) -> None:
    """report.md, compare.json, losses.png, and rate_distortion.png if there are curves."""
    envelope.write(str(folder / "compare.json"), rows, "lic compare")
    draw_losses(comparison, folder / "losses.png")
    picture = "![held-out loss against steps and seconds](losses.png)"
    if found := curves(comparison.preset, comparison.runs):
        optimizers = {one.name: one.optimizer for one in variants(comparison.preset)}
        rate_distortion(found, folder / "rate_distortion.png", optimizers)
        picture += "\n\n![R-D curves of the held-out images](rate_distortion.png)"
    write_page(folder / "report.md", f"# Comparison of optimizers\n\n{report}\n{picture}\n")


def _names(row: Row) -> dict[str, Any]:
    return {"model": row["group"], "lambda": f"{row['lam']:g}", "optimizer": row["label"]}


def _loss(row: Row) -> str:
    spread = "" if row["rd_loss_spread"] is None else f" +- {row['rd_loss_spread']:.3f}"
    diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
    return number(row["rd_loss"], ".3f") + spread + diverged


def _to_adam(row: Row, what: str, form: str) -> str:
    if not row["compared"]:
        return "-"
    absent = "-" if row["reached"] else "never"
    return share(row[f"{what}_to_adam"], row[f"{what}_ratio"], form, absent)


def _ratio(row: Row, adam: Row | None, key: str) -> str:
    if adam is None or row["clock"] is None or row["clock"] != adam["clock"]:
        return "-"
    return f"{row[key] / adam[key]:.2f}x"
