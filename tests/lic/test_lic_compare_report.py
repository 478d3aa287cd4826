"""What a comparison says of runs that are made up: clocks, commits, curves; and its lock."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.files import BadInput
from bench.lic.__main__ import main
from bench.lic.comparison import report
from bench.lic.comparison.differences import sentences, welch
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


def summaries(losses: dict[str, list[float]], rates: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of kind `variant` of runs that end at these losses, by variant and seed.

    Each run is at its last loss after step 20, and 0.5 above it after step 10.
    """
    chosen = replace(
        preset(0.013),
        seeds=len(losses["adam"]),
        frequencies=(),
        optimizers=("adam", "adam_soap_betas", "soap_fast", "pytorch_optimizer"),
    )
    found = Comparison(chosen, "images: few")
    for name, config in runs(chosen, chosen.trials[0], rates, {}):
        variant = name.partition("_lambda")[0]
        loss = losses[variant][config.seed]
        whole = summary(config)
        for point, more in zip(whole["curve"], (0.5, 0.0), strict=True):
            point["rd_loss"] = loss + more
        whole["rd_loss"] = loss
        found.runs.append(Run(Path(name), whole, {"processor": "one", "gpu": None}, {}, "first"))
    rows = report.results(found)
    return [row for row in rows if row["kind"] in ("variant", "difference")]


SAME = "pytorch_optimizer_10_at_rate_of_soap_fast"
LOSSES = {
    "adam": [5.0, 5.2, 4.8, 5.0],
    "adam_soap_betas": [4.6, 4.8, 4.4, 4.6],
    "soap_fast_10": [3.0, 3.2, 2.8, 3.0],
    "pytorch_optimizer_10": [3.0, 3.3, 2.8, 3.0],
    SAME: [2.2, 2.4, 2.0, 2.2],
}
OTHER_RATES = {"adam": 1e-3, "adam_soap_betas": 2e-3, "soap_fast": 2e-3, "pytorch_optimizer": 4e-3}


def test_runs_at_soap_fasts_rate_are_rows_of_their_own() -> None:
    rows = summaries(LOSSES, OTHER_RATES)
    found = {row["variant"]: row for row in rows if row["kind"] == "variant"}
    assert {name: row["rd_losses"] for name, row in found.items()} == LOSSES
    assert found[SAME]["label"] == "pytorch_optimizer at soap_fast's rate"
    assert found[SAME]["lr"] == found["soap_fast_10"]["lr"] == 2e-3
    assert found["pytorch_optimizer_10"]["lr"] == 4e-3


def test_one_searched_rate_gives_equal_rows_without_further_runs() -> None:
    rates = {**OTHER_RATES, "pytorch_optimizer": 2e-3}
    rows = summaries(LOSSES, rates)
    found = {row["variant"]: row for row in rows if row["kind"] == "variant"}
    assert found[SAME]["rd_losses"] == found["pytorch_optimizer_10"]["rd_losses"]
    assert found[SAME]["seeds"] == 4


def test_the_better_adam_is_the_one_to_beat() -> None:
    rows = summaries(LOSSES, OTHER_RATES)
    assert {row["to_reach"] for row in rows if row["kind"] == "variant"} == {"adam_soap_betas"}
    pairs = [(r["of"], r["and"]) for r in rows if r.get("measure") == "rd_loss"]
    assert pairs == [
        ("adam", "adam_soap_betas"),
        ("soap_fast", "adam_soap_betas"),
        ("pytorch_optimizer", "adam_soap_betas"),
        ("soap_fast", "pytorch_optimizer"),
        ("soap_fast", "pytorch_optimizer at soap_fast's rate"),
    ]
    worse = {**LOSSES, "adam_soap_betas": [5.6, 5.8, 5.4, 5.6]}
    rows = summaries(worse, OTHER_RATES)
    assert {row["to_reach"] for row in rows if row["kind"] == "variant"} == {"adam"}


def test_a_difference_is_said_only_beyond_two_standard_errors() -> None:
    lines = sentences([r for r in summaries(LOSSES, OTHER_RATES) if r["kind"] == "difference"])
    text = "\n".join(lines)
    head = "- elic x 0.125, lambda 0.013, final R-D loss: "
    assert f"{head}soap_fast 3.000 +- 0.163, adam_soap_betas 4.600 +- 0.163; 1.600 lower" in text
    assert (
        f"{head}soap_fast 3.000 +- 0.163, pytorch_optimizer 3.025 +- 0.206; no difference that 4 "
        "seeds can tell" in text
    )
    assert "rate 2.200 +- 0.163; 0.800 higher, standard error 0.115" in text
    steps = "steps to adam_soap_betas's final loss: "
    assert f"{steps}soap_fast 10 +- 0, adam_soap_betas 20 +- 0; 10 steps fewer" in text
    assert f"{steps}adam never, adam_soap_betas 20 +- 0; by 0 of 4 and 4 of 4 seeds" in text


@pytest.mark.parametrize(("apart", "told"), [(2.01, True), (1.99, False)])
def test_the_rule_is_welchs_standard_error_twice(apart: float, told: bool) -> None:
    error = math.sqrt(0.3**2 / 4 + 0.5**2 / 5)
    for sign in (1, -1):
        found = welch((7.0, 0.3, 4), (7.0 + sign * apart * error, 0.5, 5))
        assert found["told"] is told
        assert found["standard_error"] == pytest.approx(error)
        assert found["difference"] == pytest.approx(-sign * apart * error)


def test_one_seed_or_a_missing_mean_tells_nothing() -> None:
    assert not welch((1.0, None, 1), (9.0, None, 1))["told"]
    assert not welch((None, None, 4), (9.0, 0.1, 4))["told"]
    assert "no difference that 1 seed can tell" in said(compared(preset(0.013)))
    assert "more than two standard errors apart" in said(compared(preset(0.013)))


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
    assert "10 (50%)  " in said(compared(preset(0.013)))
    text = said(compared(preset(0.013), **changes))
    assert "not all runs were made on the same" in text
    assert "10 (50%)  " in text, "steps are compared anyway"
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
