"""What study.json keeps of a study's rows: what its report and pictures are made of, and no more.

All of it stays in the folder of the runs: looks in each result.json, quantisations in
quantized.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DIGITS = 6  # significant ones; tables show five at most, float32 has seven

Row = dict[str, Any]


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
