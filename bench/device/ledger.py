"""Which parts of a long measurement are done, in a folder, so that a later call goes on there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.command import BadInput
from bench.device.parts import Part
from bench.output import envelope

FILE = "parts.json"
DONE, FAILED, CUT_OFF = "done", "failed", "cut off"
STALE = "of another commit"


class Ledger:
    """`parts.json`, written anew after every part; a killed writer leaves the old one."""

    def __init__(self, folder: Path) -> None:
        """BadInput where the folder cannot be used, or holds results of another machine."""
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text() if self.path.exists() else "{}"
        except OSError as error:
            raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None
        try:
            found = json.loads(text)
            self.entries: dict[str, dict[str, Any]] = dict(found.get("parts", {}))
            there = found.get("machine")
            for entry in self.entries.values():
                if not (isinstance(entry["command"], list) and isinstance(entry["status"], str)):
                    raise ValueError("no entry of ours")
        except (ValueError, TypeError, AttributeError, KeyError):
            raise BadInput(f"{self.path} is damaged: remove it, or name another --out") from None
        self.machine, self.commit = envelope.machine(), envelope.commit()
        if there is not None and there != self.machine:
            raise BadInput(f"--out {folder} holds results of another machine: name another folder")

    def status(self, part: Part) -> str | None:
        """None for a part not run, or by another command; STALE for one of another commit."""
        entry = self.entries.get(part.name)
        if entry is None or entry["command"] != list(part.command):
            return None
        # Results that are tracked change while they are taken: a commit with changes is the same.
        same = _head(entry.get("commit")) == _head(self.commit)
        return str(entry["status"]) if same else STALE

    def left(self, parts: Sequence[Part]) -> list[Part]:
        """Those that are not done: the untried first, for one that failed may fail again."""
        untried = [part for part in parts if self.status(part) in (None, STALE)]
        return untried + [p for p in parts if self.status(p) in (FAILED, CUT_OFF)]

    def record(self, part: Part, **entry: Any) -> None:
        made = {"command": list(part.command), "limit": part.limit, "commit": self.commit}
        self.entries[part.name] = made | entry
        content = {"machine": self.machine, "commit": self.commit, "parts": self.entries}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(new, self.path)


def _head(commit: str | None) -> str | None:
    return None if commit is None else commit.partition("+")[0]
