"""What the seeds can tell: differences between optimizers, and the rule by which one is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import sqrt
from typing import Any, NamedTuple

from bench.lic.optimizers import one_algorithm

Row = dict[str, Any]

ERROR = "standard_error"
ERRORS = 2  # of them, which a difference has to exceed
RULE = (
    "A difference is said where the means of two optimizers lie more than two standard errors "
    "apart; else the report says: no difference that so many seeds can tell. The standard error is "
    "Welch's, sqrt(s1^2 / n1 + s2^2 / n2), of standard deviations s over n seeds each. With four "
    "seeds each, about one in ten pairs that do not differ passes. Of steps, all seeds must have "
    "reached the loss."
)


class Measure(NamedTuple):
    """How sentences speak of a mean; `what` may name the Adam to reach."""

    what: str
    form: str
    less: str
    more: str


MEASURES = {  # by the key of the mean
    "rd_loss": Measure("final R-D loss", ".3f", "lower", "higher"),
    "steps_to_adam": Measure("steps to {}'s final loss", ".0f", "steps fewer", "steps more"),
}


def differences(rows: Sequence[Row], frequency: int) -> list[Row]:
    """A row for each model, lambda, pair of optimizers and measure.

    Pairs are: every other optimizer with the better Adam; the two Adams; soap_fast with others of
    its algorithm, at rates of their own and at one rate.

    Args:
        rows: see `statistics.by_variant`.
        frequency: of refreshes; other rows are left out.
    """
    chosen = [row for row in rows if row["frequency"] in (None, frequency)]
    found = []
    for _, members in groupby(chosen, key=lambda row: (row["group"], row["lam"])):
        for one, other in _pairs(list(members)):
            found += [_difference(one, other, key) for key in MEASURES]
    return found


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    by_label = {row["label"]: row for row in rows}
    adam = by_label.get(rows[0]["to_reach"])
    if adam is not None:
        for row in rows:
            if row is not adam and row["label"] == row["optimizer"]:
                yield row, adam
    ours = by_label.get("soap_fast")
    if ours is not None:
        for row in rows:
            if one_algorithm(row["optimizer"], "soap_fast"):
                yield ours, row


def _difference(one: Row, other: Row, key: str) -> Row:
    return {
        "group": one["group"],
        "lam": one["lam"],
        "of": one["label"],
        "and": other["label"],
        "measure": key,
        "to_reach": one["to_reach"],
        "means": [one[key], other[key]],
        "spreads": [one[f"{key}_spread"], other[f"{key}_spread"]],
        "seeds": [_seeds(row, key) for row in (one, other)],
        "of_seeds": [row["seeds"] for row in (one, other)],
        **welch(*(_sample(row, key) for row in (one, other))),
    }


def _seeds(row: Row, key: str) -> int:
    """How many have a number."""
    return int(row["reached"] if key == "steps_to_adam" else row["seeds"] - row["diverged"])


def _sample(row: Row, key: str) -> tuple[float | None, float | None, int]:
    """Mean, standard deviation and number of seeds; no mean if a seed has no number."""
    whole = _seeds(row, key) == row["seeds"]
    return row[key] if whole else None, row[f"{key}_spread"], row["seeds"]


def welch(
    one: tuple[float | None, float | None, int], other: tuple[float | None, float | None, int]
) -> Row:
    """Difference of two means, its standard error, and whether it is told (see RULE).

    Args:
        one, other: mean, standard deviation over seeds, number of seeds; None where there is none.
    """
    (a, spread_a, n_a), (b, spread_b, n_b) = one, other
    if a is None or b is None:
        return {"difference": None, ERROR: None, "told": False}
    if spread_a is None or spread_b is None:
        return {"difference": a - b, ERROR: None, "told": False}
    error = sqrt(spread_a**2 / n_a + spread_b**2 / n_b)
    return {"difference": a - b, ERROR: error, "told": abs(a - b) > ERRORS * error}


def sentences(rows: Sequence[Row]) -> list[str]:
    """One line of Markdown for each."""
    return [f"- {row['group']}, lambda {row['lam']:g}, {_said(row)}." for row in rows]


def _said(row: Row) -> str:
    measure = MEASURES[row["measure"]]
    means = (
        f"{row[name]} {_mean(row, place, measure.form)}" for place, name in enumerate(("of", "and"))
    )
    both = f"{measure.what.format(row['to_reach'])}: {', '.join(means)}"
    if row["told"]:
        size, error = (format(abs(row[key]), measure.form) for key in ("difference", ERROR))
        how = measure.less if row["difference"] < 0 else measure.more
        return f"{both}; {size} {how}, standard error {error}"
    if row["seeds"] != row["of_seeds"]:
        some, other = (f"{n} of {of}" for n, of in zip(row["seeds"], row["of_seeds"], strict=True))
        return f"{both}; by {some} and {other} seeds, so that no difference is said"
    count = min(row["seeds"])
    return f"{both}; no difference that {count} seed{'s' * (count != 1)} can tell"


def _mean(row: Row, place: int, form: str) -> str:
    mean, spread = row["means"][place], row["spreads"][place]
    if mean is None:
        return "never"
    return f"{mean:{form}}" + ("" if spread is None else f" +- {spread:{form}}")
