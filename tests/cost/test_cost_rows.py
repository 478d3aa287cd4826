"""Rows of `kernels --aot --shapes`, and tiles that stand for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tolerances
from cost_data import load

from bench.__main__ import main as bench
from bench.cost import aot
from bench.cost import rows as cost
from bench.cost.case import walked
from bench.cost.sampling import representatives
from bench.recorded import record
from bench.shapes import load as inventory

pytest.importorskip("triton")

SOAKING = "SOAP_FAST_EXAMPLES" in os.environ  # `make soak`
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHAPES = [(64, 48, 3, 3), (64, 48, 3, 3), (96,), (40, 72)]


def shapes_file(folder, shapes):
    params = [{"name": f"weight {n}", "shape": shape} for n, shape in enumerate(shapes)]
    path = folder / "small.json"
    path.write_text(json.dumps({"model": "small", "params": params}))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file with the shapes of a few small tensors."""
    return shapes_file(tmp_path_factory.mktemp("shapes"), SHAPES)


def run(*command: object) -> str:
    """In a process that compiles; this one interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.fspath(ROOT)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled(small, tmp_path_factory):
    """Rows of the last two of them and of the first two, and tiles of all."""
    halves = [
        shapes_file(tmp_path_factory.mktemp("half"), some) for some in (SHAPES[-2:], SHAPES[:2])
    ]
    asked = {"rows": list(map(str, halves)), "tiles": [str(small)]}
    return json.loads(run(HERE / "compiling.py", json.dumps(asked)))


def test_tiles_stand_for_tiles_that_issue_as_much(compiled):
    """Every tile of a few small tensors, walked for itself."""
    (found,) = compiled["tiles"]
    for launch in found:
        some, every = launch["instructions"]
        assert some == pytest.approx(every, rel=tolerances.SAMPLED_INSTRUCTIONS), launch
        for kind in ("load", "store"):
            some, every = launch[kind]
            assert some == pytest.approx(every, rel=tolerances.SAMPLED_SECTORS), launch
    some, every = (sum(launch["walked"][place] for launch in found) for place in (0, 1))
    assert some < 0.8 * every


def check_rows(rows, launches, architectures):
    """With times on the architecture that was measured, and on no other.

    Args:
        launches: of a step.
        architectures: those whose machine code the model reads.
    """
    assert {row["sm"] for row in rows} == set(architectures)
    for sm in architectures:
        *each, total = (row for row in rows if row["sm"] == sm)
        assert len(each) == launches
        assert {row["name"] for row in each} >= {"gather", "rotate 0", "rotate back 1", "apply"}
        assert all(1 <= row["dependent_loads"] <= 10 for row in each)
        assert total["name"] == "all"
        for row in each:
            for ratio in ("sectors_ratio", "read_ratio"):
                assert row[ratio] is None or row[ratio] >= 1
    times = [row["predicted_us"] for row in rows if row["sm"] == 90]
    assert sum(times[:-1]) == pytest.approx(times[-1])
    assert min(times) > 4
    assert all(row["predicted_us"] is None for row in rows if row["sm"] != 90)
    assert {row["precision"] for row in rows} == {"tf32x3"}


def launches_of(shapes):
    return record(inventory(str(shapes))).step()


def test_a_row_for_each_launch_and_one_of_all(compiled, tmp_path):
    check_rows(compiled["rows"][0], launches_of(shapes_file(tmp_path, SHAPES[-2:])), [90])


def test_a_tile_behind_another_waits_for_its_record_and_for_data(compiled):
    """The first tile of a launch has nobody to read ahead for it, so there must be more."""
    loads = {row["name"]: row.get("dependent_loads") for row in compiled["rows"][1]}
    large = [name for name in loads if name.split()[0] in ("gather", "rotate", "apply")]
    assert len(large) == 6
    assert {name: loads[name] for name in large if loads[name] > 2} == {}


@pytest.mark.soak
@pytest.mark.skipif(not SOAKING, reason="compiles for half a minute each: make soak runs it")
def test_a_row_for_each_launch_on_every_architecture(tmp_path):
    small = shapes_file(tmp_path, SHAPES[-2:])
    options = ("--sm", *aot.ARCHITECTURES, "--precision", "tf32x3", "--json", "-")
    said = run("-m", "bench", "kernels", "--aot", "--shapes", small, *options)
    read = [sm for sm in aot.ARCHITECTURES if sm != 120]
    check_rows(json.loads(said)["results"], launches_of(small), read)


def test_another_architecture_has_no_times():
    (case,) = load("elic", ("adam",))
    walk = walked(case)
    elsewhere = replace(case, sm=100)
    assert cost.row(case, walk, 1000, 1, "tf32x3")["predicted_us"] > 4
    assert cost.row(elsewhere, walk, 1000, 1, "tf32x3")["predicted_us"] is None


def test_representatives_are_tiles_of_their_own_kind(small):
    recorded = record(inventory(str(small)))
    recorded.step()
    for launch in recorded.launcher.launched:
        stands = representatives(launch)
        assert stands.shape == (launch.tiles,)
        assert (stands[stands] == stands).all()


def test_stored_kernels_are_read_back():
    (case,) = load("elic", ("adam",))
    assert case.tiles == 176
    assert case.code.startswith("adam\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--check",), "leave --shapes out"),
        (("--precision", "bf16"), "invalid choice: 'bf16' (choose from"),
        (("--sm", "75"), "invalid choice: 75 (choose from 80, 86"),
        (("--sm", "120"), "does not read machine code of sm_120"),
    ],
)
def test_what_cannot_be_predicted_is_said(options, said, small, monkeypatch, capsys):
    monkeypatch.setattr(aot, "check_compiles", lambda: None)
    with pytest.raises(SystemExit) as ended:
        sys.exit(bench(["kernels", "--aot", "--shapes", str(small), *options]))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
