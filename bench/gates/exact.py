"""Launches, bytes, flops, padding and state of the models: alike on every machine, or changed.

Any difference trips, a gain as well: then it is recorded anew, by a commit that says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.command import BadInput, Row
from bench.gates.check import RESULTS, check, recorded
from bench.output import envelope

LAUNCHES, STATE = RESULTS / "launches" / "recorded.json", RESULTS / "state" / "recorded.json"
FIELDS = (
    "launches_plain", "launches_refresh", "tiles", "flops", "executed_flops", "bytes", "padding",
    "workspace_ratio",
)  # fmt: skip
RERECORD = {
    LAUNCHES: f"python -m bench launches --json {LAUNCHES}",
    STATE: "python -m bench gate --record",
}


def models() -> list[str]:
    """Those that are recorded."""
    return list(_by_model(LAUNCHES))


def expected(model: str) -> Row:
    """What is recorded of a model.

    Raises:
        BadInput: nothing is.
    """
    found = {}
    for path, how in RERECORD.items():
        by_model = _by_model(path)
        if model not in by_model:
            raise BadInput(
                f"{path} knows no {model!r}: take {', '.join(by_model)}, or record it by {how}"
            )
        found.update(by_model[model])
    return found


def _by_model(path: Path) -> dict[str, Row]:
    return {row["model"]: row for row in recorded(path, RERECORD[path])["results"]}


def checks(found: Row, expected: Row) -> Iterator[Row]:
    """A row per field, one for all launches taken apart, and one for the state.

    Args:
        found: of `bench.roofline.counted.counted`.
    """
    model = found["model"]
    for field in (*FIELDS, "state_bytes"):
        ok = found[field] == expected[field]
        yield check(field, model, found[field], "==", expected[field], ok)
    changed = _changed(found["by_launch"], expected["by_launch"])
    told = ", ".join(changed) or "as recorded"
    yield check("by_launch", model, told, "==", "as recorded", not changed)


def _changed(found: Sequence[Row], expected: Sequence[Row]) -> list[str]:
    """Names of launches that are new, gone or other ones."""
    before, after = ({row["launch"]: row for row in rows} for rows in (expected, found))
    return [
        name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)
    ]


def record_state(found: Sequence[Row], path: Path = STATE) -> None:
    """Write what is expected of states from now on; of models that are not given, as before."""
    before = json.loads(path.read_text())["results"] if path.is_file() else []
    rows = {row["model"]: row for row in before}
    fields = ("model", "parameters", "state_bytes")
    rows.update({row["model"]: {field: row[field] for field in fields} for row in found})
    envelope.write(str(path), list(rows.values()))
