"""What an evaluation leaves behind: Markdown, pictures and a result file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import envelope
from bench.files import told
from bench.lic import style
from bench.lic.evaluation import curves
from bench.lic.evaluation.curves import against, to_adams_loss
from bench.lic.evaluation.quality import PADDING, Evaluation
from bench.lic.training import say

Rows = list[dict[str, Any]]

NOTES = (
    "bpp is the model's estimate, which a range coder reaches within 1 % (tests/lic/"
    f"test_lic_coding.py; --coded writes the bytes). {PADDING}",
    "PSNR is of the decoded image clamped to [0, 1], not rounded to 8 bits; means over a set are "
    "of the images' own bpp and PSNR, each counting alike.",
    "BD-rate is relative to Adam's curve: per cent of bits at equal PSNR, negative where fewer are "
    "needed. Several seeds of one lambda are averaged before. Of Adam's curves, where other rates, "
    "options or steps make several, each is an anchor.",
    "Steps and seconds to Adam's final R-D loss are those of the first evaluation on the run's own "
    "held-out images that was no worse than Adam's last (of several Adams the one with the lowest "
    "loss); the shares are of that Adam's whole run. "
    "Adam's own row tells when it first was as good as at its end. "
    "Seconds are of training, without evaluations.",
)


def results(evaluation: Evaluation) -> Rows:
    """Rows of three kinds: `run` with its images, `bd_rate`, and `to_adams_loss`."""
    rows: Rows = []
    for group in evaluation.groups:
        for variant, runs in group.variants().items():
            rows += [
                {
                    "kind": "run",
                    "run": run.name,
                    "group": group.name,
                    "variant": variant,
                    "lam": run.lam,
                    "seed": run.config["seed"],
                    "lr": run.config["lr"],
                    "set": data,
                    "bpp": score.bpp,
                    "psnr": score.psnr,
                    "coded_bpp": score.coded_bpp,
                    "images": [image._asdict() for image in score.images],
                }
                for run in runs
                for data, score in evaluation.scores[run.name].items()
            ]
    rows += bd_rates(evaluation)
    for group in evaluation.groups:
        rows += [{"kind": "to_adams_loss", **row} for row in to_adams_loss(group)]
    return rows


def bd_rates(evaluation: Evaluation) -> Rows:
    """The BD-rate, or why there is none, of each curve against each of Adam's."""
    rows: Rows = []
    anchors = {group.name: group.anchors() for group in evaluation.groups}
    for (group, data), found in evaluation.curves().items():
        where = {"group": group, "set": data}
        rows += [{"kind": "bd_rate", **where, **row} for row in against(anchors[group], found)]
    return rows


def text(evaluation: Evaluation, rows: Rows) -> str:
    """The whole report in Markdown, without the pictures."""
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    parts = [f"- {data.found}" for data in evaluation.sets]
    parts += _skipped(evaluation)
    if len(evaluation.groups) > 1:
        names = "; ".join(group.name for group in evaluation.groups)
        parts.append(f"- {len(evaluation.groups)} groups, not compared with each other: {names}")
    for kind, (title, table) in KINDS.items():
        if by_kind[kind]:
            parts += ["", f"## {title}", "", style.table(table(by_kind[kind]))]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES)]) + "\n"


def _skipped(evaluation: Evaluation) -> list[str]:
    return [f"- {line}" for line in evaluation.absent()]


def _of_runs(rows: Rows) -> Rows:
    coded = any(row["coded_bpp"] is not None for row in rows)
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "lambda": f"{row['lam']:g}",
            "seed": row["seed"],
            "data set": row["set"],
            "images": len(row["images"]),
            "bpp": style.number(row["bpp"], ".4f"),
            **({"bpp of the bytes": style.number(row["coded_bpp"], ".4f")} if coded else {}),
            "PSNR dB": f"{row['psnr']:.2f}",
        }
        for row in rows
    ]


def _of_bd_rates(rows: Rows) -> Rows:
    return [
        {
            "model": row["group"],
            "data set": row["set"],
            "optimizer": row["variant"],
            "against": row["anchor"] or "-",
            "BD-rate": row["reason"] or f"{row['percent']:+.2f} %",
        }
        for row in rows
    ]


def _of_reach(rows: Rows) -> Rows:
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "lambda": f"{row['lam']:g}",
            "seed": row["seed"],
            "Adam's loss": f"{row['adam_rd_loss']:.3f}",
            "steps": style.share(row["steps"], row["steps_ratio"], "d", "never"),
            "seconds": "other clock"
            if row["clock"]
            else style.share(row["seconds"], row["seconds_ratio"], ".0f", "never"),
            "peak memory": "-" if row["memory_ratio"] is None else _memory(row),
        }
        for row in rows
    ]


def _memory(row: dict[str, Any]) -> str:
    return f"{row['memory_ratio']:.2f}x ({row['memory_of']})"


KINDS = {
    "run": ("Quality", _of_runs),
    "bd_rate": ("BD-rate", _of_bd_rates),
    "to_adams_loss": ("To Adam's final loss", _of_reach),
}


def write(rows: Rows, report: str, folder: Path) -> None:
    """eval.json and report.md in `folder`, before anything is drawn."""
    envelope.write(str(folder / "eval.json"), rows, "lic eval")
    _write_report(report, [], folder)


def draw(evaluation: Evaluation, report: str, folder: Path) -> None:
    """rate_distortion.png and reconstructions_*.png in `folder`, and in report.md.

    A picture that cannot be drawn is named, and left out.
    """
    shown = []
    name = "rate_distortion.png"
    if _drawn(name, lambda: curves.rate_distortion(evaluation.curves(), folder / name)):
        shown.append(f"![R-D curves]({name})")
    for name, images in evaluation.pictures().items():
        if _drawn(name, partial(curves.reconstructions, images, folder / name)):
            shown.append(f"![original and reconstructions]({name})")
    _write_report(report, shown, folder)


def _drawn(name: str, draws: Callable[[], None]) -> bool:
    try:
        draws()
    except Exception as error:  # whatever a plotting library raises
        say(f"{name} is left out ({told(error)})")
        return False
    return True


def _write_report(report: str, shown: list[str], folder: Path) -> None:
    lines = ["# Evaluation", "", report, *(["", *shown] if shown else [])]
    style.write_page(folder / "report.md", "\n".join(lines) + "\n")
