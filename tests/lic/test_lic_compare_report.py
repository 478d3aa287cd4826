"""What a comparison says of runs that are made up: clocks, commits, curves; and its lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.files import BadInput
from bench.lic.__main__ import main
from bench.lic.comparison import report
from bench.lic.comparison.plan import CPU, Preset, runs
from bench.lic.comparison.runner import Comparison, alone, timed, wall_seconds
from bench.lic.evaluation.runs import Run
from bench.lic.training import Config

LAMBDAS = (0.0018, 0.0067, 0.013, 0.0483)
RATES = {"adam": 1e-3, "soap_fast": 2e-3}


def preset(*lambdas: float) -> Preset:
    trial = replace(CPU.trials[0], lambdas=lambdas, steps=20)
    optimizers = ("adam", "soap_fast")
    return replace(CPU, trials=(trial,), optimizers=optimizers, seeds=1, frequencies=(5,))


def compared(chosen: Preset, **changes: Any) -> Comparison:
    """soap_fast needs 0.9 of Adam's bits; its runs have the `changes`, of fields of Run."""
    found = Comparison(chosen, "images: few", wall_seconds=90.0)
    for name, config in runs(chosen, chosen.trials[0], RATES, {}):
        run = Run(Path(name), summary(config), {"processor": "one", "gpu": None}, {}, "first")
        found.runs.append(run if config.optimizer == "adam" else replace(run, **changes))
    return found


def summary(config: Config) -> dict[str, Any]:
    place = LAMBDAS.index(config.lam)
    bpp = 0.1 * 2**place * (1 if config.optimizer == "adam" else 0.9)
    end = {"rd_loss": 2.0 + bpp, "bpp": bpp, "psnr": 28 + 2.5 * place}
    curve = [{"step": step, "seconds": step / 10, **end} for step in (10, 20)]
    times = {"step_ms": 100.0, "optimizer_ms": 10.0, "optimizer_share": 0.1, "seconds": 2.0}
    memory = {"peak_memory": 2**20, "peak_memory_of": "optimizer state"}
    return {"curve": curve, "steps": 20, **end, **times, **memory, "config": config.as_dict()}


def said(found: Comparison) -> str:
    return report.text(found, report.results(found))


def test_four_lambdas_give_curves_and_bd_rates(tmp_path: Path) -> None:
    found = compared(preset(*LAMBDAS))
    rows = report.results(found)
    rates = {row["variant"]: row["percent"] for row in rows if row["kind"] == "bd_rate"}
    assert rates == pytest.approx({"soap_fast_10": -10, "soap_fast_5": -10})
    text = report.text(found, rows)
    assert "-10.00 %" in text
    assert "Values of lambda" not in text
    report.write(found, rows, text, tmp_path)
    assert (tmp_path / "rate_distortion.png").stat().st_size > 10_000


def test_a_few_lambdas_give_none_and_that_is_said() -> None:
    text = said(compared(preset(0.0067, 0.013)))
    assert "BD-rate of the held-out" not in text
    assert "Values of lambda: 2; R-D curves and BD-rates need at least 4" in text


def test_runs_minutes_and_threads_are_said() -> None:
    found = compared(preset(0.013))
    assert "- 3 runs, 1.5 minutes of training and evaluations, 1 thread\n" in said(found)
    found.add_time(None)
    assert "at least 1.5 minutes" in said(found)


def test_runs_of_several_commits_are_named_and_keep_their_origin() -> None:
    assert "commits" not in said(compared(preset(0.013)))
    found = compared(preset(0.013), commit="first456789+changes")
    said_of_both = "2 commits: first (1 runs), first45678+changes (2 runs)"
    assert said_of_both in said(found)
    rows = [row for row in report.results(found) if row["kind"] == "run"]
    assert [row["commit"] for row in rows] == ["first", *2 * ["first456789+changes"]]


@pytest.mark.parametrize(
    "changes", [{"versions": {"torch": "3"}}, {"machine": {"processor": "two", "gpu": None}}]
)
def test_times_of_other_machines_and_versions_are_not_compared(changes: dict[str, Any]) -> None:
    assert "1.00x" in said(compared(preset(0.013)))
    text = said(compared(preset(0.013), **changes))
    assert "not all runs were made on the same" in text
    assert "50% of Adam's steps (1 of 1 seeds)" in text
    for line in text.splitlines():
        if "soap_fast" in line and line.startswith("|") and "ms" not in line:
            assert "1.00x" not in line


def test_times_are_means_of_seeds_with_one_clock_only() -> None:
    chosen = replace(preset(0.013), seeds=2)
    found = compared(chosen)
    found.runs[0] = replace(found.runs[0], machine={"processor": "two", "gpu": None})
    rows = {row["variant"]: row for row in report.results(found) if row["kind"] == "variant"}
    assert rows["adam"]["step_ms"] is rows["adam"]["clock"] is None
    assert rows["soap_fast_10"]["step_ms"] == 100


def test_a_run_is_of_one_call_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with pytest.raises(BadInput, match="another call is at work on"), alone(tmp_path / "run"):
            pass
        with alone(tmp_path / "another"):
            pass
    with alone(tmp_path / "run"):
        pass


def test_a_stopped_run_keeps_its_seconds(tmp_path: Path) -> None:
    assert wall_seconds(tmp_path) is None
    with pytest.raises(KeyboardInterrupt), timed(tmp_path):
        raise KeyboardInterrupt
    first = wall_seconds(tmp_path)
    with timed(tmp_path):
        pass
    assert first is not None
    assert (wall_seconds(tmp_path) or 0) > first > 0


def test_lambdas_are_changed_and_planned_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--preset=paper", "--lambdas", "0.05", "0.01", "0.05", "--seeds=2", "--dry-run"]
    assert main(["compare", *given]) == 0
    printed = capsys.readouterr().out
    assert "0.01, 0.05" in printed
    assert "2 seeds" in printed
