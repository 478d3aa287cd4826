"""Result files read again, ours and pytest-benchmark's, as rows of one form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import BadInput, Row


@dataclass(frozen=True)
class ResultFile:
    """One result.

    Attributes:
        machine: fingerprint, as of bench/output/envelope.py.
        versions: of packages.
        commit: that was measured; None where it is not known.
        rows: one per thing; of pytest-benchmark `seconds`, its samples and what a case told.
        by_plugin: whether pytest-benchmark wrote it.
    """

    path: str
    machine: Row
    versions: Row
    commit: str | None
    rows: list[Row]
    by_plugin: bool


def read(path: str) -> ResultFile:
    """A result of `python -m bench .. --json` or of `pytest bench/ --benchmark-json`.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; name a file that --json has written") from None
    except ValueError as error:
        text = f"{path} is not JSON ({error}): name a file that --json has written"
        raise BadInput(text) from None
    fields = set(content) if isinstance(content, dict) else set()
    try:
        if {"machine_info", "benchmarks"} <= fields:
            return _of_the_plugin(path, content)
        if {"machine", "results"} <= fields:
            return _of_ours(path, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {error})") from None
    raise BadInput(
        f"{path} is no result file: it needs {{machine, results}}, as --json writes, or is what "
        "pytest bench/ --benchmark-json writes"
    )


def differences(one: Row, other: Row) -> str | None:
    """What tells two machines apart, e.g. `cores 4 and 2`; None where nothing does."""
    fields = dict.fromkeys((*one, *other))
    differ = [f"{k} {one.get(k)} and {other.get(k)}" for k in fields if one.get(k) != other.get(k)]
    return "; ".join(differ) or None


def _of_the_plugin(path: str, content: dict[str, Any]) -> ResultFile:
    machine = dict(content["machine_info"])
    versions = machine.pop("versions", {})
    rows = []
    for one in content["benchmarks"]:
        told = one["extra_info"] or {"name": one["fullname"]}
        data = one["stats"].get("data")
        samples = {"samples": {"seconds": list(data)}} if data else {}
        rows.append({**told, "seconds": one["stats"]["median"], **samples})
    commit = content.get("commit_info", {}).get("id")
    return ResultFile(path, machine, versions, commit, rows, by_plugin=True)


def _of_ours(path: str, content: dict[str, Any]) -> ResultFile:
    rows = [dict(row) for row in content["results"]]
    versions = dict(content.get("versions", {}))
    machine, commit = dict(content["machine"]), content.get("commit")
    return ResultFile(path, machine, versions, commit, rows, by_plugin=False)
