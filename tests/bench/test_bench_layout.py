"""bench/ as it is laid out: imports go one way, from the commands to what they measure with."""

from __future__ import annotations

from test_architecture import ROOT, names_from

BENCH = ROOT / "bench"
# A module may import from those further down only. `lic` trains by itself; of it, workloads.py
# takes models. `cost` is what a launch costs by its machine code.
ORDER = (
    "__main__", "device", "readme", "report", "test_ops",
    "tune", "refresh", "kernels", "launches", "train", "step", "turns", "memory",
    "cost", "recorded", "roof", "clock", "costs",
    "workloads", "lic", "optimizers", "shapes",
    "command", "envelope", "files",
)  # fmt: skip


def test_imports_go_one_way():
    there = {path.stem for path in BENCH.glob("*.py")} | {"cost", "lic"}
    assert there == {*ORDER, "__init__"}, "a module is missing in ORDER, or gone"
    for place, name in enumerate(ORDER):
        paths = [BENCH / f"{name}.py", *(BENCH / name).glob("*.py")]
        for path in (path for path in paths if path.exists() and name != "lic"):
            targets = {found.partition(".")[0] for found in names_from("bench", path)}
            for target in targets - {name}:
                assert target in ORDER[place + 1 :], f"{path.name}: {target}"
