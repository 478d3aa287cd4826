"""csrc/ as it is laid out: includes go one way, by paths from csrc/, and kernels know no torch."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"

# A folder may include from those further down only, and all of them from BELOW.
ORDER = (
    "unchanged",  # what of Python's tensors is as it was; alone, a module of its own
    "step",  # a step of all tensors on the CPU, and moments after a refresh
    "refresh",  # bases follow their factors
    "refresh/phases",  # by kernels, one after another
    "eigh",  # first bases
    "linalg",  # products and factorisations, of no operator's own
    "cuda",  # what we have of CUDA, of no operator's own
)
BELOW = {"common.h", "common.cpp", "workers.h", "workers.cpp"}
ABOVE = {"schema.cpp", "build_info.cpp", "build_info.h.in"}  # may include from all
MADE_BY_CMAKE = "build_info.h"


def includes(path: Path) -> list[str]:
    """What a file includes of ours, as it is written there."""
    return re.findall(r'#include "([^"]+)"', path.read_text())


def folder_of(name: str) -> str:
    """Of a path from csrc/, "." for what stands on top."""
    return Path(name).parent.as_posix()


def reached(path: Path) -> set[Path]:
    """A file and all of ours that it includes, by others too."""
    found, left = set(), [path]
    while left:
        now = left.pop()
        if now not in found:
            found.add(now)
            left += [CSRC / name for name in includes(now) if name != MADE_BY_CMAKE]
    return found


def test_every_file_stands_in_a_folder_with_a_place_in_the_order():
    files = [path.relative_to(CSRC) for path in CSRC.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.parent == Path()} == BELOW | ABOVE
    folders = {folder_of(path.as_posix()) for path in files} - {"."}
    assert folders == set(ORDER), "a folder is missing in ORDER, or gone"


def test_includes_are_paths_from_csrc():
    for path in [*CSRC.rglob("*"), *(ROOT / "tests" / "native").glob("*")]:
        if path.suffix not in {".h", ".cpp", ".cu"}:
            continue
        for name in includes(path):
            there = (CSRC / name).exists() or (
                path.parent.name == "native" and (path.parent / name).exists()
            )
            assert there or name == MADE_BY_CMAKE, f"{path.relative_to(ROOT)}: {name}"


def test_folders_include_one_way():
    for place, folder in enumerate(ORDER):
        for path in (CSRC / folder).glob("*.*"):
            for name in includes(path):
                allowed = folder_of(name) in ORDER[place:] or name in BELOW
                assert allowed, f"{folder}/{path.name}: {name}"
    for name in BELOW:
        assert set(includes(CSRC / name)) <= BELOW, name


def test_kernels_know_pointers_and_no_torch():
    kernels = list(CSRC.rglob("*.cu"))
    assert kernels
    for kernel in kernels:
        for path in reached(kernel):
            assert "<torch/" not in path.read_text(), f"{kernel.name} includes {path.name}"
