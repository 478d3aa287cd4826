"""bench/ as it is laid out: imports go one way, from the commands to what they measure with."""

from __future__ import annotations

import ast
from pathlib import Path

BENCH = Path(__file__).parent.parent.parent / "bench"
# A module may import from those further down only. `lic` trains by itself; of it, workloads.py
# takes models. `cost` is what a launch costs by its machine code.
ORDER = (
    "__main__", "device", "readme", "report", "test_ops",
    "tune", "refresh", "kernels", "launches", "train", "step", "turns", "memory",
    "cost", "recorded", "roof", "clock", "costs",
    "workloads", "lic", "optimizers", "shapes",
    "command", "envelope", "files",
)  # fmt: skip


def imported(path: Path) -> set[str]:
    """Modules and folders of bench/ that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, *rest = node.module.split(".")
            if first == "bench":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


def test_imports_go_one_way():
    there = {path.stem for path in BENCH.glob("*.py")} | {"cost", "lic"}
    assert there == {*ORDER, "__init__"}, "a module is missing in ORDER, or gone"
    for place, name in enumerate(ORDER):
        paths = [BENCH / f"{name}.py", *(BENCH / name).glob("*.py")]
        for path in (path for path in paths if path.exists() and name != "lic"):
            for target in imported(path) - {name}:
                assert target in ORDER[place + 1 :], f"{path.name}: {target}"
