"""Means and spreads over seeds, of what the runs of a comparison have told."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import fmean, stdev
from typing import Any

from bench.lic.comparison.plan import Preset, Variant, variants
from bench.lic.evaluation.curves import FEWEST, Curves, against, points, to_adams_loss
from bench.lic.evaluation.runs import Group, Run, group
from bench.lic.optimizers import ADAMS

Row = dict[str, Any]


def by_variant(preset: Preset, runs: Sequence[Run]) -> list[Row]:
    """A row for every model, lambda and variant, in the order of the preset.

    Losses are those of the held-out images after the last step; a run that diverged has none, and
    is counted in `diverged`. Steps and seconds to Adam's final loss are means over the seeds that
    reached it, of which there are `reached`; the ratios are to Adam's whole run of the same seed.
    Where Adam has several betas, the `better_adam` is the one to reach. Times are None where the
    runs have no common `clock`.
    """
    rows = []
    for members in group(runs):
        for lam in sorted({run.lam for run in members.runs}):
            adam = better_adam(members, lam)
            reach = {row["run"]: row for row in to_adams_loss(members, adam)}
            for variant in variants(preset):
                if chosen := of_variant(members, lam, variant):
                    row = _row(chosen, [reach[run.name] for run in chosen if run.name in reach])
                    rows.append({**_names(members, lam, variant), **row, "to_reach": adam})
    return rows


def better_adam(members: Group, lam: float) -> str:
    """Of Adam's betas those whose runs diverged less, or else have the lower mean final loss."""

    def badness(name: str) -> tuple[int, float]:
        runs = [run for run in members.runs if run.lam == lam and run.optimizer == name]
        ends = [float(run.summary["rd_loss"]) for run in runs if not run.diverged]
        return len(runs) - len(ends), fmean(ends) if ends else inf

    there = {run.optimizer for run in members.runs if run.lam == lam}
    return min([name for name in ADAMS if name in there] or ["adam"], key=badness)


def of_variant(members: Group, lam: float, variant: Variant) -> list[Run]:
    """Its runs, a seed each.

    Where an optimizer's runs have two rates, one is that of `rate_of`, and the other its own.
    """
    runs = [run for run in members.runs if run.lam == lam]
    of_it = [
        run
        for run in runs
        if run.optimizer == variant.optimizer
        and run.config["precondition_frequency"] == variant.frequency
    ]
    rates = {run.config["lr"] for run in of_it}
    lender = variant.rate_of or "soap_fast"
    lent = {run.config["lr"] for run in runs if run.optimizer == lender}
    wanted = lent if variant.rate_of else rates - lent or rates
    return [run for run in of_it if run.config["lr"] in wanted]


def curves(preset: Preset, runs: Sequence[Run]) -> Curves:
    """Held-out R-D curves of the models with enough lambdas for a BD-rate."""
    return {
        (members.name, "held-out images"): {
            variant.name: points(
                [
                    (run.lam, run.summary["bpp"], run.summary["psnr"])
                    for run in members.runs
                    if run in of_variant(members, run.lam, variant) and not run.diverged
                ]
            )
            for variant in variants(preset)
        }
        for members in group(runs)
        if len({run.lam for run in members.runs}) >= FEWEST
    }


def bd_rates(found: Curves) -> list[Row]:
    return [
        {"group": name, "set": data, **row}
        for (name, data), of_variants in found.items()
        for row in against(["adam"] if "adam" in of_variants else [], of_variants)
    ]


def _names(members: Group, lam: float, variant: Variant) -> Row:
    return {
        "group": members.name,
        "lam": lam,
        "variant": variant.name,
        "optimizer": variant.optimizer,
        "label": variant.label,
        "frequency": None if variant.optimizer in ADAMS else variant.frequency,
    }


def _row(runs: list[Run], reach: list[Row]) -> Row:
    ends = [run.summary for run in runs if not run.diverged]
    reached = [row for row in reach if row["steps"] is not None]
    clock = runs[0].clock if all(run.clock == runs[0].clock for run in runs) else None
    timed = [run.summary for run in runs] if clock else []
    return {
        "lr": runs[0].config["lr"],
        "seeds": len(runs),
        "diverged": len(runs) - len(ends),
        "rd_loss": _mean(ends, "rd_loss"),
        "rd_loss_spread": _spread([end["rd_loss"] for end in ends]),
        "rd_losses": [end["rd_loss"] for end in ends],
        "bpp": _mean(ends, "bpp"),
        "psnr": _mean(ends, "psnr"),
        "step_ms": _mean(timed, "step_ms"),
        "optimizer_ms": _mean(timed, "optimizer_ms"),
        "optimizer_share": _mean(timed, "optimizer_share"),
        "seconds": _mean(ends, "seconds") if clock else None,
        "clock": clock,
        "peak_memory": max(run.summary["peak_memory"] for run in runs),
        "peak_memory_of": runs[0].summary["peak_memory_of"],
        "compared": len(reach),
        "reached": len(reached),
        "steps_to_adam": _mean(reached, "steps"),
        "steps_to_adam_spread": _spread([row["steps"] for row in reached]),
        "steps_ratio": _mean(reached, "steps_ratio"),
        "seconds_to_adam": _mean(reached, "seconds") if clock else None,
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
    for evaluation in zip(*(run.summary["curve"] for run in runs), strict=False):
        column = [point[key] for point in evaluation]
        if None in column:
            break
        values.append(column)
    return values
