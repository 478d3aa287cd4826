"""`python -m bench compare`: ratios, their intervals, the gate, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main as bench
from bench.commands import compare
from bench.output.series import Series

MACHINE = {"processor": "made up", "cores": 2, "threads": 2, "system": "none", "gpu": None}
STEADY = [10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0]


def ours(median=10.0, samples=STEADY, factor=1.0, **machine):
    """A made-up result of `step`, `factor` times slower."""
    row = {
        "name": "soap_fast",
        "shapes": "tiny",
        "first_ms": 20.0,
        "plain_ms": factor * median,
        "refresh_ms": None,
        "floor_ms": 1.0,
        "gb_s": 1.0,
        "samples": {"plain_ms": [factor * sample for sample in samples]},
    }
    return {"machine": {**MACHINE, **machine}, "versions": {"torch": "1"}, "results": [row]}


def the_plugins(factor=1.0, data=STEADY):
    """A made-up result of `pytest bench/ --benchmark-json`, in seconds."""
    stats = {"median": factor * 10e-3, "data": [factor * ms / 1e3 for ms in data]}
    told = {"op": "step_", "shapes": "tiny", "backend": "eager", "device": "cpu"}
    one = {"name": "test_op[x]", "fullname": "t::test_op[x]", "extra_info": told, "stats": stats}
    return {
        "machine_info": {**MACHINE, "versions": {"torch": "1"}},
        "commit_info": {"id": "abc"},
        "benchmarks": [one],
    }


@pytest.fixture
def run(tmp_path, capsys):
    """Compare two contents; exit code, rows and what was said on standard error."""

    def compared(old, new, *options):
        paths = []
        for name, content in (("old", old), ("new", new)):
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
        target = tmp_path / "rows.json"
        code = bench(["compare", *map(str, paths), "--json", str(target), *options])
        rows = json.loads(target.read_text())["results"] if target.exists() else []
        return code, {row["name"]: row for row in rows}, capsys.readouterr().err

    return compared


class TestRatios:
    def test_times_and_nothing_else_are_compared(self, run):
        code, rows, _ = run(ours(), ours(factor=2.0))
        assert code == 0
        assert list(rows) == ["soap_fast tiny first_ms", "soap_fast tiny plain_ms"]
        row = rows["soap_fast tiny plain_ms"]
        assert (row["old_ms"], row["new_ms"], row["ratio"]) == (10.0, 20.0, 2.0)
        assert 1.9 < row["low"] <= 2.0 <= row["high"] < 2.1
        assert row["verdict"] == "slower"
        assert rows["soap_fast tiny first_ms"]["low"] is None

    def test_results_of_the_plugin(self, run):
        _, rows, _ = run(the_plugins(), the_plugins(0.5))
        (row,) = rows.values()
        assert row["name"] == "step_ tiny eager cpu seconds"
        assert row["old_ms"] == pytest.approx(10.0)
        assert row["ratio"] == 0.5
        assert row["verdict"] == "faster"

    def test_the_interval_covers_what_it_should(self):
        """Of 200 comparisons of equals about 95 % contain 1; a wider one would be of no use."""
        import numpy as np

        generator, inside, widths = np.random.default_rng(0), 0, []
        for _ in range(200):
            one, other = (Series(1.0, (tuple(generator.lognormal(0, 0.1, 40)),)) for _ in range(2))
            low, high = compare.interval(one, other)
            inside += low <= 1 <= high
            widths.append(high - low)
        assert 0.91 <= inside / 200 <= 1.0
        assert np.median(widths) < 0.15

    def test_an_interval_asks_for_five_samples(self):
        four, five = (Series(10.0, (tuple(STEADY[:count]),)) for count in (4, 5))
        assert compare.interval(five, four) is None
        assert compare.interval(four, five) is None
        assert compare.interval(five, five) is not None

    def test_a_mean_is_resampled_by_kinds_of_call(self, run):
        old, new = ours(), ours()
        for content, refresh in ((old, 40.0), (new, 80.0)):
            (row,) = content["results"]
            row |= {"refresh_ms": refresh, "mean_ms": (9 * 10.0 + refresh) / 10}
            row |= {"precondition_frequency": 10}
            row["samples"]["refresh_ms"] = [refresh * sample / 10 for sample in STEADY]
        _, rows, _ = run(old, new)
        mean = rows["soap_fast tiny precondition_frequency=10 mean_ms"]
        assert mean["ratio"] == pytest.approx(17 / 13)
        assert 17 / 13 * 0.98 < mean["low"] <= 17 / 13 <= mean["high"] < 17 / 13 * 1.02
        new["results"][0]["samples"]["refresh_ms"] = [80.0, 80.0]
        _, rows, _ = run(old, new)
        assert rows["soap_fast tiny precondition_frequency=10 mean_ms"]["low"] is None

    def test_an_arithmetic_mean_is_resampled_as_one(self, run):
        old, new = ours(), ours()
        for content, slow in ((old, 10.0), (new, 110.0)):
            (row,) = content["results"]
            samples = [slow, *[10.0] * 39, slow]
            row |= {"mean_ms": sum(samples) / 41, "precondition_frequency": 10}
            row["samples"]["mean_ms"] = samples
        mean = run(old, new)[1]["soap_fast tiny precondition_frequency=10 mean_ms"]
        assert mean["high"] > mean["ratio"] > 1.4  # a median would have been 1, as every resample's

    def test_models_of_other_sizes_are_other_things(self, run):
        old, new = ours(), ours()
        old["results"][0]["batch"], new["results"][0]["batch"] = 8, 2
        code, _, said = run(old, new)
        assert code == 2
        assert "have timed nothing alike" in said

    def test_many_samples_are_thinned_out_evenly(self):
        samples = compare.thinned(range(100_000))
        assert len(samples) == compare.MOST_SAMPLES
        assert (samples[0], samples[-1]) == (0, 99_999)
        assert list(compare.thinned([3.0, 1.0])) == [3.0, 1.0]

    def test_rows_that_nothing_tells_apart_are_counted(self, run):
        twice = ours()
        twice["results"] *= 2
        _, rows, _ = run(twice, twice)
        assert "soap_fast tiny plain_ms #2" in rows


class TestGate:
    def test_a_slowdown_trips_it_and_noise_does_not(self, run):
        assert run(ours(), ours(factor=1.3), "--gate", "1.1")[0] == 1
        assert run(ours(), ours(factor=1.05), "--gate", "1.1")[0] == 0
        noisy = ours(median=13.0, samples=[9.0, 9.5, 13.0, 14.0, 10.0])
        assert run(ours(), noisy, "--gate", "1.1")[0] == 0  # the median alone is 30 % slower

    def test_what_has_no_samples_is_named(self, run):
        _, _, said = run(ours(), ours(), "--gate", "1.1")
        assert "1 with too few samples: not held to the gate" in said

    def test_a_gate_that_holds_nothing_is_refused(self, run):
        code, _, said = run(ours(), ours(samples=[]), "--gate", "1.1")
        assert code == 2
        assert "nothing can be held to --gate" in said


class TestMachines:
    def test_another_one_is_refused_unless_allowed(self, run):
        old, new = ours(), ours(cores=4)
        code, _, said = run(old, new)
        assert code == 2
        assert "cores 2 and 4" in said
        assert "--any-machine" in said
        assert said.count("\n") == 1
        assert run(old, new, "--any-machine")[0] == 0

    def test_other_versions_are_told(self, run):
        new = ours()
        new["versions"] = {"torch": "2"}
        code, _, said = run(ours(), new)
        assert code == 0
        assert "versions differ: torch 1 -> 2" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ([1], "is no result file"),
        ({"machine": MACHINE, "results": [3]}, "is damaged"),
        ({"machine_info": MACHINE, "benchmarks": [{}]}, "is damaged"),
        ({"machine": MACHINE, "results": [{"name": "x"}]}, "has no times"),
        (
            {"machine": MACHINE, "results": [{"name": "other", "plain_ms": 1.0}]},
            "have timed nothing alike",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, content, message):
    code, _, said = run(ours(), content)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_file_that_is_not_there(capsys):
    assert bench(["compare", "nowhere.json", "nowhere.json"]) == 2
    assert "nowhere.json: No such file or directory" in capsys.readouterr().err


TOY = {
    "model": "toy",
    "params": [{"name": "w", "shape": [6, 4, 3, 3]}, {"name": "b", "shape": [6]}],
}
QUICK = ("--precondition-frequency", "2", "--periods", "5")
TIMED = {
    "refresh": ("--op", "eager", "--repeats", "5"),
    "kernels": ("--of", "operators", "--backend", "eager", "--steps", "5"),
    "step": QUICK,
    "train": ("--batch", "1", "--width", "4", *QUICK),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("command", TIMED)
def test_results_of_every_command_can_be_held_to_a_gate(
    command, tmp_path, inventory_file, monkeypatch
):
    monkeypatch.setattr("bench.commands.step.peak_bytes", lambda *_: None)
    monkeypatch.setattr("bench.peers.train_memory.peak_bytes", lambda *_: None)
    roofs = [
        {"roof": "copy", "value": 1.0, "unit": "GB/s"},
        {"roof": "gemm_float32", "value": 1.0, "unit": "GFLOP/s"},
    ]
    monkeypatch.setattr("bench.commands.kernels.measure", lambda _: roofs)
    result, rows = (str(tmp_path / name) for name in ("result.json", "rows.json"))
    shapes = () if command == "train" else ("--shapes", inventory_file(TOY))
    more = (*shapes, "--device", "cpu", *TIMED[command])
    assert bench([command, *more, "--json", result]) == 0
    assert bench(["compare", result, result, "--gate", "1.5", "--json", rows]) == 0
    held = {
        row["name"].split()[-1]
        for row in json.loads(Path(rows).read_text())["results"]
        if row["low"]
    }
    expected = {
        "refresh": {"refresh_ms", "refresh_loop_ms", "eigh_ms", "eigh_loop_ms"},
        "kernels": {"us", "host_us"},
        "step": {"plain_ms", "refresh_ms", "mean_ms"},
        "train": {"plain_ms", "refresh_ms", "mean_ms", "median_ms", "forward_ms", "backward_ms"},
    }
    assert held == expected[command]
