"""When other runs were as good as Adam at its end, and what they needed for it."""

from __future__ import annotations

from typing import Any

from bench.lic.evaluation.runs import Group, Run

Point = dict[str, Any]  # of a curve: step, seconds, rd_loss, bpp, psnr


def first_at(curve: list[Point], goal: float) -> Point | None:
    """The first evaluation with an R-D loss of at most `goal`; None where there is none."""
    found = (p for p in curve if p["rd_loss"] is not None and p["rd_loss"] <= goal)
    return next(found, None)


def to_adams_loss(group: Group) -> list[dict[str, Any]]:
    """A row for each run that has an Adam to be compared with: of the same lambda and seed.

    Of several Adams of these (other rates, options, steps) it is the one with the lowest loss.

    Adam's own row tells when it first was as good as at its end; of a loss that swings, earlier.

    steps and seconds are those of the first evaluation that was no worse than Adam's last one,
    None if there was none; steps_ratio and seconds_ratio are to Adam's whole run. Seconds are of
    training, without evaluations, and None where the two did not run on equal terms; why is then
    in `clock`.
    """
    rows = []
    for label, runs in group.variants().items():
        for run in runs:
            adam = _adam_of(run, group)
            if adam is not None:
                rows.append({"group": group.name, "variant": label, **_row(run, adam)})
    return rows


def _adam_of(run: Run, group: Group) -> Run | None:
    adams = [
        other
        for other in group.runs
        if other.optimizer == "adam"
        and other.lam == run.lam
        and other.config["seed"] == run.config["seed"]
        and not other.diverged
    ]
    return min(adams, key=lambda other: float(other.summary["rd_loss"]), default=None)


def _row(run: Run, adam: Run) -> dict[str, Any]:
    mine, theirs = run.summary, adam.summary
    point = None if run.diverged else first_at(mine["curve"], theirs["rd_loss"])
    apart = [
        f"{key} {run.clock[key]} and {adam.clock.get(key)}"
        for key in run.clock
        if run.clock[key] != adam.clock.get(key)
    ]
    steps, seconds = (point["step"], point["seconds"]) if point else (None, None)
    if apart:
        seconds = None
    same_memory = mine.get("peak_memory_of") == theirs.get("peak_memory_of")
    memory = (mine.get("peak_memory"), theirs.get("peak_memory")) if same_memory else (None, None)
    return {
        "run": run.name,
        "adam": adam.name,
        "lam": run.lam,
        "seed": run.config["seed"],
        "rd_loss": mine["rd_loss"],
        "adam_rd_loss": theirs["rd_loss"],
        "steps": steps,
        "steps_ratio": _ratio(steps, theirs["steps"]),
        "seconds": seconds,
        "seconds_ratio": _ratio(seconds, theirs["seconds"]),
        "clock": "; ".join(apart) or None,
        "memory_ratio": _ratio(*memory),
        "memory_of": mine.get("peak_memory_of"),
    }


def _ratio(mine: float | None, adams: float | None) -> float | None:
    return mine / adams if mine is not None and adams else None
