"""Means and spreads over seeds, of what the runs of a comparison have told."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from bench.lic.comparison.plan import Variant, variants
from bench.lic.comparison.presets import Preset
from bench.lic.evaluation.reach import to_adams_loss
from bench.lic.evaluation.runs import Group, Run, group

Row = dict[str, Any]


def by_variant(preset: Preset, runs: Sequence[Run]) -> list[Row]:
    """A row for every model, lambda and variant, in the order of the preset.

    Losses are those of the held-out images after the last step; a run that diverged has none, and
    is counted in `diverged`. Steps and seconds to Adam's final loss are means over the seeds that
    reached it, of which there are `reached`; the ratios are to Adam's whole run of the same seed.
    """
    rows = []
    for members in group(runs):
        reach = {row["run"]: row for row in to_adams_loss(members)}
        for lam in sorted({run.lam for run in members.runs}):
            for variant in variants(preset):
                if chosen := of_variant(members, lam, variant):
                    row = _row(chosen, [reach[run.name] for run in chosen if run.name in reach])
                    rows.append({**_names(members, lam, variant), **row})
    return rows


def of_variant(members: Group, lam: float, variant: Variant) -> list[Run]:
    """Its runs, a seed each."""
    return [
        run
        for run in members.runs
        if run.lam == lam
        and run.optimizer == variant.optimizer
        and run.config["precondition_frequency"] == variant.frequency
    ]


def _names(members: Group, lam: float, variant: Variant) -> Row:
    return {
        "group": members.name,
        "lam": lam,
        "variant": variant.name,
        "optimizer": variant.optimizer,
        "frequency": None if variant.optimizer == "adam" else variant.frequency,
    }


def _row(runs: list[Run], reach: list[Row]) -> Row:
    ends = [run.summary for run in runs if not run.diverged]
    reached = [row for row in reach if row["steps"] is not None]
    return {
        "lr": runs[0].config["lr"],
        "seeds": len(runs),
        "diverged": len(runs) - len(ends),
        "rd_loss": _mean(ends, "rd_loss"),
        "rd_loss_spread": _spread([end["rd_loss"] for end in ends]),
        "rd_losses": [end["rd_loss"] for end in ends],
        "bpp": _mean(ends, "bpp"),
        "psnr": _mean(ends, "psnr"),
        "step_ms": _mean([run.summary for run in runs], "step_ms"),
        "optimizer_ms": _mean([run.summary for run in runs], "optimizer_ms"),
        "optimizer_share": _mean([run.summary for run in runs], "optimizer_share"),
        "seconds": _mean(ends, "seconds"),
        "peak_memory": max(run.summary["peak_memory"] for run in runs),
        "peak_memory_of": runs[0].summary["peak_memory_of"],
        "compared": len(reach),
        "reached": len(reached),
        "steps_to_adam": _mean(reached, "steps"),
        "steps_ratio": _mean(reached, "steps_ratio"),
        "seconds_to_adam": _mean(reached, "seconds"),
        "seconds_ratio": _mean(reached, "seconds_ratio"),
    }


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Of the values that there are; None if one is missing, or all."""
    values = [row[key] for row in rows]
    return fmean(values) if values and None not in values else None


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of a single one."""
    return stdev(values) if len(values) > 1 else None


def band(runs: Sequence[Run], key: str) -> list[list[float]]:
    """`key` of the curve at every evaluation  # [evaluations][runs].

    Ends where a run ends, or has no number.
    """
    values: list[list[float]] = []
    for points in zip(*(run.summary["curve"] for run in runs), strict=False):
        column = [point[key] for point in points]
        if None in column:
            break
        values.append(column)
    return values
