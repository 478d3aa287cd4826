"""`compare`: two results of the same measurement, time by time, and whether one became slower.

Files are those of `--json`, or of `pytest bench/ --benchmark-json`. `ratio` is new over old; `low`
and `high` are its 95 % interval by bootstrap, where both files kept at least 5 samples of each kind
of call. It knows how calls of one process scatter and nothing of how processes differ: between two
runs of the same code it is too narrow, so leave a margin. With `--gate 1.1` the exit code is 1
where even `low` is above 1.1. Results of two machines are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.arguments import positive
from bench.command import BadInput, Row, add_json_option, check_target, show
from bench.output.files import ResultFile, differences, read
from bench.output.series import Series, times

COLUMNS = ("name", "old_ms", "new_ms", "ratio", "low", "high", "verdict")
CONFIDENCE, RESAMPLES = 0.95, 2000  # as many put 50 beyond either end
LEAST_SAMPLES = 5  # of two, 29 in 100 intervals miss what they should hold
# More samples are thinned out evenly: an interval only becomes wider by it, and half a million
# calls of a tiny op would take gigabytes to resample.
MOST_SAMPLES = 500


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="A.json")
    parser.add_argument("new", metavar="B.json")
    parser.add_argument(
        "--gate", type=positive(float), metavar="RATIO", help="exit 1 where low is above it"
    )
    parser.add_argument(
        "--any-machine", action="store_true", help="compare results of different machines too"
    )
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    old, new = read(options.old), read(options.new)
    if not options.any_machine:
        refuse_other_machines(old, new)
    before, after = (_times(file) for file in (old, new))
    rows = compare(before, after)
    if not rows:
        raise BadInput(
            f"{old.path} and {new.path} have timed nothing alike: compare like with like"
        )
    if options.gate is not None and all(row["low"] is None for row in rows):
        raise BadInput(
            f"no time of which both files kept {LEAST_SAMPLES} samples: nothing can be held to "
            "--gate; measure more --periods or --repeats"
        )
    for row in rows:
        row["verdict"] = verdict(row, options.gate)
    show(rows, COLUMNS, options.json)
    for path, series in ((old.path, before), (new.path, after)):
        tell_alone(path, [name for name in series if name not in {row["name"] for row in rows}])
    without = sum(row["low"] is None for row in rows)
    if without and options.gate is not None:
        print(f"{without} with too few samples: not held to the gate", file=sys.stderr)
    tell_versions(old.versions, new.versions)
    return int(any(row["verdict"] == "too slow" for row in rows))


def refuse_other_machines(old: ResultFile, new: ResultFile) -> None:
    if differ := differences(old.machine, new.machine):
        raise BadInput(
            f"results of two machines ({differ}): measure both on one, or take --any-machine"
        )


def _times(file: ResultFile) -> dict[str, Series]:
    found = times(file)
    if not found:
        raise BadInput(f"{file.path} has no times: take the result of a command that measures some")
    return found


def compare(old: Mapping[str, Series], new: Mapping[str, Series]) -> list[Row]:
    """A row for everything that both have timed, in the order of the new one."""
    rows = []
    for name in (name for name in new if name in old):
        before, after = old[name], new[name]
        low, high = interval(before, after) or (None, None)
        rows.append(
            {
                "name": name,
                "old_ms": before.value,
                "new_ms": after.value,
                "ratio": after.value / before.value,
                "low": low,
                "high": high,
            }
        )
    return rows


def interval(old: Series, new: Series) -> tuple[float, float] | None:
    """Of the ratio; None for too few samples of either, or values that are made otherwise."""
    groups = (*new.samples, *old.samples)
    if not (old.samples and new.samples) or min(map(len, groups)) < LEAST_SAMPLES:
        return None
    # Other commands run where these are not installed.
    import numpy as np
    from scipy.stats import bootstrap

    def value(series: Series, resampled: Sequence[Any], axis: int) -> Any:
        center = np.mean if series.by_mean else np.median
        each = (center(group, axis=axis) for group in resampled)
        return sum(weight * of for weight, of in zip(series.weights, each, strict=True))

    def ratio(*resampled: Any, axis: int) -> Any:
        count = len(new.samples)
        return value(new, resampled[:count], axis) / value(old, resampled[count:], axis)

    found = bootstrap(
        tuple(map(thinned, groups)),
        ratio,
        vectorized=True,
        paired=False,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",  # others lean on derivatives, which a median has none of
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def thinned(samples: Sequence[float]) -> Sequence[float]:
    if len(samples) <= MOST_SAMPLES:
        return samples
    step = (len(samples) - 1) / (MOST_SAMPLES - 1)
    return [samples[round(step * place)] for place in range(MOST_SAMPLES)]


def verdict(row: Row, gate: float | None) -> str | None:
    """`too slow` past the gate; else slower or faster where the interval leaves no doubt."""
    if row["low"] is None:
        return None
    if gate is not None and row["low"] > gate:
        return "too slow"
    if row["low"] > 1:
        return "slower"
    return "faster" if row["high"] < 1 else "same"


def tell_alone(path: str, names: Sequence[str]) -> None:
    """What only one file has is no comparison; a few of it tell which mistake that may be."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"only in {path}: {', '.join(names[:3])}{more}", file=sys.stderr)


def tell_versions(old: Row, new: Row) -> None:
    """Other versions are what a comparison may be about: told, not refused."""
    moved = [
        f"{package} {old.get(package)} -> {new.get(package)}"
        for package in dict.fromkeys((*old, *new))
        if old.get(package) != new.get(package)
    ]
    if moved:
        print(f"versions differ: {', '.join(moved)}", file=sys.stderr)
