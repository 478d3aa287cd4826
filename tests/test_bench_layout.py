"""bench/ as it is laid out: data flows one way, from what measures to the commands that show it."""

from __future__ import annotations

import ast
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"

# A folder may import from those further down only.
ORDER = (
    "commands",  # one of `python -m bench` each
    "device",  # parts of one of them, and how it goes on
    "suite",  # `pytest bench/`
    "report",  # pages of what was kept
    "gates",  # what must not change
    "peers",  # others, beside ours
    "cost",  # what a launch costs by its machine code
    "roofline",  # what is measured against
    "measuring",  # what is measured with
    "output",  # what is kept and shown
)
MODELS = "lic"  # it trains by itself; of it, workloads.py takes models


def folders_imported(path: Path) -> set[str]:
    """Folders of bench/ that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, *rest = node.module.split(".")
            if first == "bench":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found & {*ORDER, MODELS}


def test_folders_import_one_way():
    there = {path.parent.name for path in BENCH.glob("*/__init__.py")}
    assert there == {*ORDER, MODELS}, "a folder is missing in ORDER, or gone"
    for name in ORDER:
        for path in (BENCH / name).rglob("*.py"):
            for target in folders_imported(path) - {name}:
                assert target in ORDER[ORDER.index(name) + 1 :], f"{name}/{path.name}: {target}"


def test_commands_stand_for_themselves():
    """What two of them need belongs into another folder."""
    for path in (BENCH / "commands").glob("*.py"):
        assert "commands" not in folders_imported(path), path.name
