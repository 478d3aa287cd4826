"""What code a run was taken by, and on what machine: of each part of it, if it was resumed."""

from __future__ import annotations

from functools import cache
from typing import Any

from bench import envelope
from bench.lic.training.history import History

MOVING = ("torch", "soap_fast")  # packages whose version moves the bits of a run


def note_where(history: History) -> None:
    """Add this process to `history.ran_on`, unless the run's last part was taken on the like."""
    versions = envelope.versions()
    here: dict[str, Any] = {
        "commit": _commit(),
        "machine": envelope.machine(),
        "versions": {name: versions[name] for name in MOVING},
    }
    before = {**history.ran_on[-1]} if history.ran_on else {}
    before.pop("from_step", None)
    if here != before:
        history.ran_on.append({"from_step": len(history.losses), **here})


@cache
def _commit() -> str | None:
    """Of the code that this process has loaded: the clone may change while it runs."""
    return envelope.commit()
