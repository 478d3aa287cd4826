"""Launches that were measured on a GPU, kept with their kernels' machine code and their tables.

tests/data/cost/ has them: `<kernel>.sass.xz` is machine code as `bench.cost.sass` condenses it,
`<model>.json.xz` what a launch reads of its tables, `measured.json` what the GPU said. So the model
of cost is compared with a measurement whatever becomes of the kernels.

    python tests/cost/cost_data.py MODEL FOLDER      keeps a model's launches as they are now
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from bench import shapes
from bench.cost.case import Case, Walked, walked
from bench.cost.issue import alone
from bench.cost.launches import cases
from bench.cost.operands import Array

DATA = Path(__file__).parent.parent / "data" / "cost"
MOST = 12  # tiles of a launch that stand for all, so that tests take seconds


def measured() -> dict[str, Any]:
    """Times by model and launch, and counters of elic's, of an NVIDIA H100 80GB HBM3."""
    found: dict[str, Any] = json.loads((DATA / "measured.json").read_text())
    return found


def load(model: str, names: tuple[str, ...] = ()) -> Iterator[Case]:
    """The launches that were kept of a model, or those of these names."""
    for kept in json.loads(_read(DATA / f"{model}.json.xz")):
        if names and kept["name"] not in names:
            continue
        code = _read(DATA / f"{kept.pop('kernel')}.sass.xz")
        stands = np.concatenate([np.full(n, tile, np.int32) for tile, n in kept.pop("stands")])
        arguments = bytes.fromhex(kept.pop("arguments"))
        words = [
            (int(at, 16), np.array(run, np.uint32).tobytes())
            for at, run in kept.pop("tables").items()
        ]
        yield Case(sm=90, code=code, stands=stands, arguments=arguments, tables=words, **kept)


def _read(path: Path) -> str:
    return lzma.decompress(path.read_bytes()).decode()


def keep(model: str, folder: Path) -> None:
    """Write a model's launches."""
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases(shapes.load(model), 90, "tf32x3"):
        few = replace(case, stands=_fewer(case, walked(case)))
        memory = walked(few).seen
        kernel = f"{case.code.partition(chr(10))[0]}_{case.registers}"
        _write(folder / f"{kernel}.sass.xz", case.code)
        kept = {
            name: getattr(case, name)
            for name in ("name", "threads", "registers", "shared", "programs", "flops", "bytes")
        }
        runs = [[int(tile), len(list(same))] for tile, same in groupby(few.stands.tolist())]
        more = {"arguments": case.arguments.hex(), "tables": _runs(memory), "stands": runs}
        found.append({"kernel": kernel, **kept, **more})
    _write(folder / f"{model}.json.xz", json.dumps(found))


def _write(path: Path, text: str) -> None:
    path.write_bytes(lzma.compress(text.encode(), preset=9))


def _runs(words: dict[int, int]) -> dict[str, list[int]]:
    """Words by address as runs."""
    found: dict[str, list[int]] = {}
    start, expected = "", -1
    for address in sorted(words):
        if address != expected:
            start = f"{address:x}"
            found[start] = []
        found[start].append(words[address])
        expected = address + 4
    return found


def _fewer(case: Case, walk: Walked) -> Array:
    """Of each tile one of MOST that issues and takes about as much as it."""
    tiles, weights = np.unique(case.stands, return_counts=True)
    each = [
        (alone(walk.code, t).cycles, t.instructions, 1 + t.sectors["store"], 1 + t.sectors["load"])
        for t in walk.tiles.values()
    ]
    place = np.log(np.array(each))  # [tiles that stand for others, 4]
    chosen = [int(np.argmax(weights))]
    while len(chosen) < min(MOST, len(tiles)):
        apart = np.abs(place[:, None] - place[chosen]).max(axis=2).min(axis=1)
        chosen.append(int(np.argmax(apart * weights * np.exp(place[:, 0]))))
    nearest = np.abs(place[:, None] - place[chosen]).max(axis=2).argmin(axis=1)
    return tiles[np.array(chosen)[nearest]][np.searchsorted(tiles, case.stands)].astype(np.int32)


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
