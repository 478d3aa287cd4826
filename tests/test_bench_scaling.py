"""`python -m bench scaling`: what is swept, what is fitted, and what is drawn."""

from __future__ import annotations

import json

import pytest
import torch

from bench.__main__ import main as bench
from bench.measuring import sweeps
from bench.report import fit

PNG = b"\x89PNG"


def run(tmp_path, *options):
    target = tmp_path / "result.json"
    assert bench(["scaling", "--quick", "--json", str(target), *options]) == 0
    rows = json.loads(target.read_text())["results"]
    return [row for row in rows if "x" in row], [row for row in rows if "exponent" in row]


class TestSweeps:
    def test_the_whole_ranges(self):
        whole = sweeps.sweeps(False, 7, "cpu")
        ends = {n: (s.settings[0].x, s.settings[-1].x) for n, s in whole.items() if n != "threads"}
        assert ends == {
            "width": (32, 1024),
            "tensors": (1, 2000),
            "kernel": (1, 11),
            "frequency": (1, 100),
        }
        assert whole["frequency"].calls == 100
        assert whole["threads"].settings[0].threads == 1
        assert "threads" not in sweeps.sweeps(False, 7, "cuda:0")

    def test_quick_runs_all_of_them_and_draws(self, tmp_path, capsys):
        plot = tmp_path / "deep" / "cost.png"
        threads = torch.get_num_threads()
        points, fits = run(tmp_path, "--plot", str(plot))
        assert torch.get_num_threads() == threads
        assert {point["sweep"] for point in points} == set(sweeps.sweeps(True, 1, "cpu"))
        assert plot.read_bytes().startswith(PNG)
        table = capsys.readouterr().out
        assert "exponent" in table
        for point in points:
            assert len(point["samples"]["refresh_ms"]) >= 1
            assert point["mean_ms"] > 0
        assert {row["metric"] for row in fits if row["sweep"] == "width"} == {
            "first_ms", "plain_ms", "refresh_ms", "mean_ms",
        }  # fmt: skip
        assert {row["metric"] for row in fits if row["sweep"] == "frequency"} == {"mean_ms"}

    def test_calls_with_a_refresh_are_told_apart(self):
        settings = tuple(sweeps.Setting(f, (4, 4), frequency=f) for f in (1, 3))
        each, third = sweeps.measure(sweeps.Sweep("frequency", "f", settings, 6), "cpu", "eager")
        assert (len(each.times.plain), len(each.times.refresh)) == (0, 6)
        assert (len(third.times.plain), len(third.times.refresh)) == (4, 2)
        (first,) = third.optimizer.state.values()
        # Two factors, as the clock says; the first of three periods is not timed.
        assert int(first["refreshes"].sum()) == 2 * 3

    def test_threads_are_those_of_the_setting(self, monkeypatch):
        seen, timed_step = [], sweeps.timed_step

        def step(optimizer, device):
            seen.append(torch.get_num_threads())
            return timed_step(optimizer, device)

        monkeypatch.setattr(sweeps, "timed_step", step)
        settings = tuple(sweeps.Setting(n, (2, 2), threads=n) for n in (1, 2))
        sweeps.measure(sweeps.Sweep("threads", "threads", settings, 1), "cpu", None)
        untimed = [n for n in (1, 2) for _ in range(1 + sweeps.FREQUENCY)]
        assert seen == [*untimed, 1, 2]

    def test_json_on_standard_output_and_nothing_else(self, capsys):
        assert bench(["scaling", "--quick", "--sweep", "kernel", "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["results"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--backend", "magic"], "backend='magic' is not one of"),
            (["--plot", f"{__file__}/below/cost.png"], "--plot "),
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, options, message, capsys):
        assert bench(["scaling", "--quick", *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1

    @pytest.mark.parametrize("options", [["--sweep", "colour"], ["--device", "cuda:99"]])
    def test_a_sweep_and_a_device_that_are_not_there(self, options, capsys):
        with pytest.raises(SystemExit) as stopped:
            bench(["scaling", *options])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert options[1] in said
        assert said.count("\n") == 1

    def test_a_gpu_has_no_threads_to_choose(self, monkeypatch, capsys):
        monkeypatch.setattr("torch.empty", lambda *shape, device: None)
        assert bench(["scaling", "--sweep", "threads", "--device", "cuda"]) == 2
        assert "cuda has none to choose" in capsys.readouterr().err


class TestExponents:
    def test_a_power_law_is_found(self):
        xs = [1, 2, 4, 8, 16, 32]
        found = fit.exponent(xs, [3.0 * x**2.5 for x in xs])
        assert found.exponent == pytest.approx(2.5)
        assert found.factor == pytest.approx(3.0)
        assert found.stderr == pytest.approx(0, abs=1e-6)
        assert (found.start, found.end, found.points) == (8, 32, 3)

    def test_the_cost_of_a_call_does_not_hide_it(self):
        xs = [2**i for i in range(10)]
        found = fit.exponent(xs, [100 + x**2 for x in xs])
        assert found.exponent > 1.8

    def test_noise_shows_in_the_standard_error(self):
        assert fit.exponent([1, 2, 4], [1.0, 3.0, 4.0]).stderr > 0.1

    def test_two_points_have_an_exponent_and_no_error(self):
        found = fit.exponent([1, 2], [1.0, 8.0])
        assert found.exponent == pytest.approx(3)
        assert found.stderr is None

    def test_one_size_has_none(self):
        assert fit.exponent([2, 2], [1.0, 1.1]) is None
        assert fit.exponent([2], [1.0]) is None
