"""`python -m bench sharing`: processes that share a refresh, beside one alone."""

from __future__ import annotations

import json
import os

import pytest

from bench.__main__ import main as bench

SHAPES = ("w", [24, 18]), ("v", [9, 24])
FEW = {"model": "few", "params": [{"name": name, "shape": shape} for name, shape in SHAPES]}

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="gives each process a core, as Linux lets it"
)


@pytest.fixture
def few(inventory_file):
    return inventory_file(FEW)


@pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)
def test_two_processes(few, tmp_path):
    target = tmp_path / "result.json"
    options = ["--shapes", few, "--op", "eager", "--repeats", "2", "--json", str(target)]
    assert bench(["sharing", *options]) == 0
    (row,) = json.loads(target.read_text())["results"]
    assert (row["ranks"], row["factors"], row["shapes"]) == (2, 4, "few")
    assert len(row["samples"]["alone"]) == len(row["samples"]["shared"]) == 2
    assert row["cpu_ratio_least"] <= row["cpu_ratio_most"]
    bases = 4 * (24**2 + 18**2 + 9**2 + 24**2)
    assert 2 * bases < 1e6 * row["megabytes"] < 3 * bases
    for kind in ("", "cpu_"):
        assert row[f"{kind}ratio"] == row[f"shared_{kind}ms"] / row[f"alone_{kind}ms"]


def test_more_ranks_than_cores_are_refused(few, capsys):
    assert bench(["sharing", "--shapes", few, "--ranks", "4096", "--op", "eager"]) == 2
    assert "--ranks 4096: each needs a core" in capsys.readouterr().err
