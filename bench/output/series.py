"""The times in a result file, by what was timed."""

from __future__ import annotations

from dataclasses import dataclass

from bench.command import Row
from bench.output.files import ResultFile

# Milliseconds of a unit, by how a field that holds a time ends.
UNITS = {"us": 1e-3, "ms": 1.0, "seconds": 1e3}
COMPUTED = ("floor_ms",)  # from tables and roofs: no time that passed
# Fields that tell the rows of a file apart, in the order in which they are read.
IDENTITY = (
    "name", "kernel", "op", "optimizer", "sweep", "x", "shape", "phase", "by", "roof", "model",
    "shapes", "batch", "crop", "width", "backend", "device", "options", "sm", "precision",
    "threads", "precondition_frequency",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Times of one thing, in milliseconds.

    Attributes:
        value: as the file has it.
        samples: that it is made of, one group for each kind of call; empty where the file kept
            none.
        weights: of the groups' medians in the value.
        by_mean: it is the arithmetic mean of its one group.
    """

    value: float
    samples: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, ...] = (1.0,)
    by_mean: bool = False


def times(file: ResultFile) -> dict[str, Series]:
    """Every positive time by what was timed, e.g. `soap_fast elic cpu plain_ms`."""
    series: dict[str, Series] = {}
    for row in file.rows:
        for field, value in row.items():
            unit = _unit(field)
            if unit is None or not isinstance(value, int | float) or value <= 0:
                continue
            name = _free(f"{_name(row)} {field}".strip(), series)
            series[name] = _series(row, field, unit, unit * value)
    return series


def _series(row: Row, field: str, unit: float, value: float) -> Series:
    own = tuple(unit * sample for sample in _samples(row, field))
    if own or field != "mean_ms":
        return Series(value, (own,) if own else (), by_mean=field == "mean_ms")
    # A mean over a refresh period: so many plain calls and a refreshing one.
    frequency = row.get("precondition_frequency")
    groups = [tuple(_samples(row, kind)) for kind in ("plain_ms", "refresh_ms")]
    if not isinstance(frequency, int) or not any(groups):
        return Series(value)
    if not all(groups):
        return Series(value, tuple(group for group in groups if group))
    return Series(value, tuple(groups), ((frequency - 1) / frequency, 1 / frequency))


def _unit(field: str) -> float | None:
    """Milliseconds of the field's unit; None for a field that is no time."""
    return None if field in COMPUTED else UNITS.get(field.rpartition("_")[2])


def _samples(row: Row, field: str) -> list[float]:
    by_field = row.get("samples")
    return list(by_field.get(field) or ()) if isinstance(by_field, dict) else []


def _name(row: Row) -> str:
    """E.g. `soap_fast elic native cpu threads=2 precondition_frequency=10`."""
    words: list[str] = []
    for field in IDENTITY:
        value = row.get(field)
        if isinstance(value, list):
            value = "x".join(map(str, value))
        if isinstance(value, str) and value and value not in words:
            words.append(value)
        elif isinstance(value, int | float):
            words.append(f"{field}={value:g}")
    return " ".join(words)


def _free(name: str, taken: dict[str, Series]) -> str:
    """Rows that nothing tells apart are counted, in the file's order."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name} #{number}", number + 1
    return found
