"""Result files read again, and whether they are of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import envelope
from bench.command import BadInput


def read(path: str) -> dict[str, Any]:
    """A result file.

    Raises:
        BadInput: it cannot be read, or is none.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; name a file that --json has written") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"machine", "results"} <= set(content):
        raise BadInput(f"{path} is not a result file: name one that --json has written")
    return content


def other_machine(content: dict[str, Any]) -> str | None:
    """What tells the machine of a result file from this one, e.g. `cores 4, here 2`; else None."""
    here, there = envelope.machine(), content["machine"]
    differ = [f"{k} {there.get(k)}, here {v}" for k, v in here.items() if there.get(k) != v]
    return "; ".join(differ) or None
