"""The file of tunings, and the tool that writes it from times, which are made up here."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch

from bench import shapes, tune
from bench.__main__ import main as bench
from soap_fast.backends.triton.launch import tuning as tunings
from soap_fast.backends.triton.launch.launcher import RecordingLauncher, kernel
from soap_fast.backends.triton.launch.tuning import FILE, TUNING, read, tuning_of

CONTENT = json.loads(FILE.read_text())
WHERE = {"device": "a GPU", "triton": "3.6.0", "shapes": "elic"}
INVENTORY = shapes.Inventory(
    "small", tuple(shapes.Entry(str(shape), shape, True) for shape in ((8, 6, 3, 3), (8,), (40, 8)))
)


@pytest.mark.parametrize("op", CONTENT["ops"])
def test_every_entry_is_complete_and_has_a_reason(op):
    entry = CONTENT["ops"][op]
    keys = {"constants", "num_warps", "programs_per_sm", "reason", "measurement"}
    assert set(entry) == keys
    assert entry["reason"].endswith(".")
    assert entry["num_warps"] in (1, 2, 4, 8)
    assert entry["programs_per_sm"] >= 1
    arguments = inspect.signature(kernel(op).fn).parameters
    assert set(entry["constants"]) <= set(arguments)
    if entry["measurement"] is not None:
        assert set(entry["measurement"]) == {*WHERE, "us", "runner_up"}


def test_the_number_of_chunks_has_a_reason():
    assert CONTENT["gram_chunks"]["value"] >= 1
    assert CONTENT["gram_chunks"]["reason"].endswith(".")


def test_every_op_has_candidates_that_differ_in_what_its_kernel_takes():
    assert set(tune.VALUES) == set(TUNING)
    for op, tuning in TUNING.items():
        found = list(tune.candidates(op))
        assert found[0] == tuning
        assert len(found) > 1
        assert all(one.constants.keys() == tuning.constants.keys() for one in found)
        assert len({json.dumps(vars(one)) for one in found}) == len(found)


def test_the_fastest_is_chosen_written_and_read(tmp_path):
    path = tmp_path / "tuning.json"
    shutil.copy(FILE, path)
    times = [(tuning, 100.0 - i) for i, tuning in enumerate(tune.candidates("rotate"))]
    entry = tune.choose(CONTENT["ops"]["rotate"], times, WHERE)
    tune.write({"rotate": entry}, path)
    tunings, chunks = read(path)
    (second, _), (best, least) = times[-2:]
    assert tunings == {**TUNING, "rotate": best}
    assert chunks == CONTENT["gram_chunks"]["value"]
    written = json.loads(path.read_text())["ops"]["rotate"]
    assert written["reason"] == CONTENT["ops"]["rotate"]["reason"]
    assert {name: written["measurement"][name] for name in WHERE} == WHERE
    assert written["measurement"]["us"] == least
    assert tuning_of(written["measurement"]["runner_up"]) == second


def test_what_is_there_stays_where_others_are_hardly_faster():
    entry, (current, *others) = CONTENT["ops"]["gram"], tune.candidates("gram")
    times = [(current, 100.0), *((other, 99.0) for other in others)]
    chosen = tune.choose(entry, times, WHERE)
    assert tuning_of(chosen) == current
    assert chosen["measurement"]["runner_up"]["us"] == 99.0


def test_writing_nothing_changes_nothing(tmp_path):
    path = tmp_path / "tuning.json"
    shutil.copy(FILE, path)
    tune.write({}, path)
    assert path.read_text() == FILE.read_text()


class Counting(RecordingLauncher):
    """As if every program of a launch took a microsecond."""

    def taken(self):
        launched = [launch for launch in self.launched if self.watches(launch.op)]
        self.launched.clear()
        return [(launch.op, float(self.programs(launch))) for launch in launched]


def test_candidates_step_the_optimizer_and_leave_the_tuning_as_it_was():
    before = dict(TUNING)
    tuner = tune.Tuner(INVENTORY, Counting(multiprocessors=1), "cpu")
    for op in TUNING:
        times = tuner.times(op, steps=2)
        # On the CPU a refresh multiplies by BLAS; and nothing here is long enough for parts.
        launched = op not in ("grouped_matmul", "gram_reduce")
        assert len(times) == (len(list(tune.candidates(op))) if launched else 0), op
    assert before == TUNING


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench(["tune", "--shapes", "hyperprior"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m bench tune: torch sees no NVIDIA GPU")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("triton", "sm", "tall", "lanes"),
    [
        ("3.6.0", 90, 128, 128),
        ("3.6.0", 120, 64, 128),
        ("3.9.0", 90, 64, 64),
        ("of another distribution", 80, 64, 64),
    ],
)
def test_tiles_are_halved_where_they_spill(monkeypatch, triton, sm, tall, lanes):
    monkeypatch.setattr(tunings, "triton_version", lambda: triton)
    found, _ = read()
    assert found["gather"].constants["FOLD_LANES"] == lanes
    assert found["apply"].constants["FOLD_LANES"] == lanes
    constants = tunings.TUNING["rotate"].constants
    assert tunings.constants_on("rotate", constants, sm)["TALL"] == tall
    assert tunings.constants_on("gram", {}, sm) == {}
