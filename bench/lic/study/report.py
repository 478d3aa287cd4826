"""What the study found: a table of claims, of scores, of outliers; the same as rows.

study.json keeps of them what report and pictures are made of. All of it stays in the folder of the
runs: looks in each result.json, quantisations in quantized.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.lic.comparison import statistics
from bench.lic.comparison.plan import PAPER, Trial, Variant, variants
from bench.lic.comparison.runner import Comparison
from bench.lic.comparison.statistics import of_variant
from bench.lic.evaluation.runs import Group, group
from bench.lic.style import number, table

Row = dict[str, Any]

DIGITS = 6  # significant ones that are kept; tables show five at most, float32 has seven
LEAST = "adaround, min-max"  # of the ways to quantise
NOTES = (
    "intra-step: cosine of what the optimizer makes of the gradient of the rate and of that of the "
    "distortion, on crops that no run trains on by their number; tensors that only one of them "
    "reaches are not in it. Below 0, one undoes the other.",
    "inter-step: cosine of two updates, one after the other. Momentum alone makes it large, and "
    "Adam's first beta is 0.9 here, soap_fast's 0.95; at the end of a falling rate it nears 1.",
    "Kurtosis is of the outputs of convolutions and linear layers in training: 3 is a normal "
    "distribution's, more are outliers. Max over rms is of y, and costs levels of a quantiser.",
    "A score depends on where training has led: at equal steps optimizers are at unequal losses.",
)


def results(comparison: Comparison, quantized: list[Row]) -> list[Row]:
    """Rows of kinds `watched` (a run's looks), `seen` (means over seeds) and `claim`."""
    found = seen(comparison)
    return [
        *({"kind": "claim", **row} for row in claims(comparison, found, quantized)),
        *({"kind": "seen", **row} for row in found),
        *(
            {"kind": "watched", "run": run.name, "looks": run.summary.get("watched", [])}
            for run in comparison.runs
        ),
    ]


def seen(comparison: Comparison) -> list[Row]:
    """A row for each model, lambda and variant; what was looked at, mean and spread over seeds."""
    rows = []
    for members in group(comparison.runs):
        for lam in sorted({run.lam for run in members.runs}):
            for variant in variants(comparison.preset):
                row = _seen(members, lam, variant)
                if row is not None:
                    rows.append(row)
    return rows


def _seen(members: Group, lam: float, variant: Variant) -> Row | None:
    looks = [run.summary.get("watched") for run in of_variant(members, lam, variant)]
    whole = [found for found in looks if found]
    if not whole:
        return None
    ends = [found[-1] for found in whole]
    y = [latents["analysis"] for end in ends if "analysis" in (latents := end["latents"])]
    return {
        "group": members.name,
        "lam": lam,
        "variant": variant.name,
        "frequency": None if variant.optimizer == "adam" else variant.frequency,
        "seeds": len(whole),
        "intra": _over([_mean(found, "intra") for found in whole]),
        "intra_negative": _over([_share_negative(found) for found in whole]),
        "inter": _over([_mean(found, "inter") for found in whole]),
        "kurtosis": _over([end["kurtosis"] for end in ends]),
        "largest_kurtosis": _over([_largest(end["layers"]) for end in ends]),
        "y_kurtosis": _over([values[0] for values in y]),
        "y_max_over_rms": _over([values[1] for values in y]),
    }


def _mean(looks: Sequence[Row], key: str) -> float | None:
    values = [look[key] for look in looks if look[key] is not None]
    return fmean(values) if values else None


def _share_negative(looks: Sequence[Row]) -> float | None:
    values = [look["intra"] < 0 for look in looks if look["intra"] is not None]
    return fmean(values) if values else None


def _largest(layers: dict[str, list[float | None]]) -> float | None:
    values = [found[0] for found in layers.values() if found[0] is not None]
    return max(values) if values else None


def _over(values: Sequence[float | None]) -> list[float | None]:
    """[mean, spread] over seeds, of those that have one."""
    there = [value for value in values if value is not None]
    if not there:
        return [None, None]
    return [fmean(there), stdev(there) if len(there) > 1 else None]


# Claims


def claims(comparison: Comparison, found: list[Row], quantized: list[Row]) -> list[Row]:
    """What the paper says, what came out here, and what this is too small to show."""
    rows = statistics.by_variant(comparison.preset, comparison.runs)
    ours = f"soap_fast_{comparison.preset.frequency}"
    seeds = f"Seeds: {comparison.preset.seeds}. A difference within the spread over them is none."
    curves = f"Values of lambda: {len({run.lam for run in comparison.runs})}."
    length = "; ".join(_length(trial) for trial in comparison.preset.trials)
    shares = "Small layers make the optimizer's share of a step another one."
    told = [
        ("70 % fewer steps to Adam's loss", _reach(rows, ours, "steps"), seeds),
        ("57.7 % less time to it", _reach(rows, ours, "seconds"), seeds),
        ("3 % better BD-rate", _bd_rates(comparison, ours), curves),
        ("more frequent refreshes take about 1 % more time", _frequencies(rows), shares),
        ("peak memory (no figure of the paper at hand)", _memory(rows, ours), shares),
        ("less conflict of rate and distortion", _both(found, ours, "intra"), length),
        ("steps agree more with those before", _both(found, ours, "inter"), length),
        ("fewer outliers in activations", _both(found, ours, "kurtosis", "kurtosis"), length),
        ("fewer outliers in latents", _both(found, ours, "y_max_over_rms", "max/rms"), length),
        ("less is lost by W8A8", _lost(quantized), f"{curves} {length}"),
    ]
    return [
        {"claim": claim, "measured": measured or ["not measured"], "too_small_for": limit}
        for claim, measured, limit in told
    ]


def _length(trial: Trial) -> str:
    whole = PAPER.trials[0]
    return (
        f"{trial.model}: {trial.steps:,} steps at {trial.factor:g} of the widths, in place of "
        f"{whole.steps:,} at {whole.factor:g}"
    )


def _memory(rows: list[Row], ours: str) -> list[str]:
    """soap_fast's over Adam's, of the same thing."""
    lines = []
    for row in rows:
        if row["variant"] == ours:
            adams = [r for r in rows if r["variant"] == "adam" and _place(r) == _place(row)]
            if adams and adams[0]["peak_memory"]:
                ratio = row["peak_memory"] / adams[0]["peak_memory"]
                lines.append(f"{row['group']}: {ratio:.2f} of Adam's ({row['peak_memory_of']})")
    return lines


def _place(row: Row) -> tuple[Any, ...]:
    return row["group"], row["lam"], row["peak_memory_of"]


def _reach(rows: list[Row], ours: str, what: str) -> list[str]:
    lines = []
    for row in rows:
        if row["variant"] == ours and row["compared"]:
            ratio = row[f"{what}_ratio"]
            less = "never" if ratio is None else f"{1 - ratio:.0%} less"
            lines.append(f"{row['group']}: {less} ({row['reached']} of {row['compared']} seeds)")
    return lines


def _bd_rates(comparison: Comparison, ours: str) -> list[str]:
    rows = statistics.bd_rates(statistics.curves(comparison.preset, comparison.runs))
    return [
        f"{row['group']}: " + (row["reason"] or f"{row['percent']:+.1f} %")
        for row in rows
        if row["variant"] == ours
    ]


def _frequencies(rows: list[Row]) -> list[str]:
    """Time of a step at each frequency over that at the rarest."""
    lines = []
    for name in dict.fromkeys(row["group"] for row in rows):
        steps = {
            row["frequency"]: row["step_ms"]
            for row in rows
            if row["group"] == name and row["optimizer"] == "soap_fast" and row["step_ms"]
        }
        if len(steps) > 1:
            rarest = steps.pop(max(steps))
            told = [f"{steps[each] / rarest - 1:+.1%} at {each}" for each in sorted(steps)]
            lines.append(f"{name}: {', '.join(told)}")
    return lines


def _both(rows: list[Row], ours: str, key: str, what: str = "mean") -> list[str]:
    lines = []
    for name, lam in dict.fromkeys((row["group"], row["lam"]) for row in rows):
        pair = {
            row["variant"]: _told(row[key])
            for row in rows
            if (row["group"], row["lam"]) == (name, lam) and row["variant"] in ("adam", ours)
        }
        if len(pair) == 2:
            lines.append(f"{name}, lambda {lam:g}: {what} {pair[ours]}, Adam's {pair['adam']}")
    return lines


def _lost(rows: list[Row]) -> list[str]:
    """Changes of the R-D loss by AdaRound with ranges of all values, means over lambda and seed."""
    chosen = [r for r in rows if r["kind"] == "quantized" and r["quantized"] == LEAST]
    lines = []
    for name in dict.fromkeys(row["group"] for row in chosen):
        of = {
            optimizer: [
                row["change"]
                for row in chosen
                if row["group"] == name and row["variant"].startswith(optimizer)
            ]
            for optimizer in ("soap_fast", "adam")
        }
        if all(of.values()):
            ours, adams = (_told(_over(values), "+.2%") for values in of.values())
            lines.append(f"{name}: R-D loss {ours}, Adam's {adams}")
    return lines


# Tables


def text(rows: list[Row]) -> str:
    """The part of the report that a comparison has not, in Markdown."""
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in ("claim", "seen")}
    parts = ["## The paper's claims", "", table([_claimed(row) for row in of["claim"]])]
    if found := of["seen"]:
        parts += ["", "## Do losses and steps agree?", "", table([_scores(row) for row in found])]
        parts += ["", "## Outliers at the end", "", table([_outliers(row) for row in found])]
        parts += ["", *(f"- {note}" for note in NOTES)]
    return "\n".join(parts) + "\n"


def _claimed(row: Row) -> Row:
    return {
        "the paper (arXiv 2601.20769)": row["claim"],
        "here": "; ".join(row["measured"]),
        "too small to show": row["too_small_for"],
    }


def _names(row: Row) -> Row:
    names = {"model": row["group"], "lambda": f"{row['lam']:g}", "optimizer": row["variant"]}
    return {**names, "seeds": row["seeds"]}


def _scores(row: Row) -> Row:
    return {
        **_names(row),
        "intra-step": _told(row["intra"]),
        "looks below 0": number(row["intra_negative"][0], ".0%"),
        "inter-step": _told(row["inter"]),
    }


def _outliers(row: Row) -> Row:
    return {
        **_names(row),
        "kurtosis, median of layers": _told(row["kurtosis"]),
        "largest": _told(row["largest_kurtosis"], ".1f"),
        "of y": _told(row["y_kurtosis"]),
        "max over rms of y": _told(row["y_max_over_rms"], ".1f"),
    }


def _told(pair: Sequence[float | None], form: str = ".2f") -> str:
    mean, spread = pair
    return number(mean, form) + ("" if spread is None else f" +- {spread:{form.lstrip('+')}}")


# What study.json keeps


def kept(rows: list[Row]) -> list[Row]:
    """The rows, with floats of DIGITS digits and less in them; those given stay as they are.

    - A run has no `watched`: the rows of that kind have it.
    - A look has of each layer the kurtosis, not max over rms and the share beyond 6 sigma.
    - A quantised layer has its output errors, not the scales and zeros of its input.
    - A run is named by its folder and the folder around it: a file is read elsewhere.
    """
    return [_rounded(_less(row)) for row in rows]


def _less(row: Row) -> Row:
    left = dict(row)
    if "run" in row:
        left["run"] = "/".join(Path(row["run"]).parts[-2:])
    if row["kind"] == "run":
        left.pop("watched", None)
    elif row["kind"] == "watched":
        left["looks"] = [_look(look) for look in row["looks"]]
    elif row["kind"] == "layers":
        left["layers"] = [_without(layer, "activations") for layer in row["layers"]]
    return left


def _look(look: Row) -> Row:
    return {**look, "layers": {name: seen[0] for name, seen in look["layers"].items()}}


def _without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
