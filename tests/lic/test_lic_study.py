"""`python -m bench.lic study`: what is looked at along a run, the plan, and a tiny study whole."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bench.lic.__main__ import main
from bench.lic.commands import quantize
from bench.lic.commands.study import COMMITTED, _searches
from bench.lic.comparison import runner
from bench.lic.comparison.plan import STUDIES, search_config
from bench.lic.data import Images, load
from bench.lic.evaluation.runs import Run
from bench.lic.models import stride
from bench.lic.optimizers import main_parameters
from bench.lic.study import report
from bench.lic.study.report import kept
from bench.lic.study.watched import Watched
from bench.lic.style import logarithmic, plain_text, write_page
from bench.lic.training import Config, Training, run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(4):
        pixels = generator.integers(256, size=(64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def images(photos: Path) -> Images:
    return load(str(photos), 64, 64)


def config(optimizer: str, **other: Any) -> Config:
    fields = {"lam": 0.01, "lr": 1e-3, "steps": 10, "batch": 1, "crop": 64, "images": "given"}
    return Config(model="hyperprior", factor=1 / 24, optimizer=optimizer, **{**fields, **other})


# What is looked at


@pytest.mark.parametrize("optimizer", ["adam", "soap_fast"])
def test_a_run_that_looks_at_itself_takes_the_same_steps(optimizer: str, images: Images) -> None:
    plain, watched = (made(config(optimizer), images) for made in (Training, Watched))
    summary, seen = run(plain, None), run(watched, None)
    states = [training.model.state_dict() for training in (plain, watched)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "watched" not in summary
    looks = seen["watched"]
    assert [look["step"] for look in looks] == [4, 8, 10]
    for look in looks:
        assert -1 <= look["intra"] <= 1
        assert look["latents"].keys() == {"analysis", "hyper_analysis"}
        assert look["kurtosis"] > 1
    assert [bool(look["layers"]) for look in looks] == [False, False, True]
    assert json.dumps(looks)


def test_the_inter_step_score_is_of_the_last_two_updates(images: Images) -> None:
    training = Watched(config("adam"), images)
    found: list[Tensor] = []
    for step in range(1, 11):
        training.step()
        params = [p.detach().double().flatten() for p in main_parameters(training.model)]
        found.append(torch.cat(params))
        if step in (4, 8, 10):
            training.evaluate()
            earlier, later = (found[-2] - found[-3], found[-1] - found[-2])
            expected = torch.cosine_similarity(earlier, later, dim=0).item()
            seen = training.history.watched[-1]["inter"]
            if step < 10:
                assert seen == pytest.approx(expected, abs=tolerances.COSINE)
            else:  # two steps behind the look before
                assert seen is None


def test_what_was_seen_is_in_a_checkpoint_and_a_score_that_was_cut_is_none(images: Images) -> None:
    first = Watched(config("adam"), images)
    for _ in range(7):
        first.step()
        if first.steps == 4:
            first.evaluate()
    second = Watched(config("adam"), images)
    second.load_state_dict(first.state_dict())
    second.step()
    second.evaluate()
    for training in (first, second):
        assert training.history.watched[0]["step"] == 4
    assert second.history.watched[1]["step"] == 8
    assert second.history.watched[1]["inter"] is None
    assert second.history.watched[1]["intra"] is not None


# The plan


def test_the_plans_are_printed_and_the_papers_needs_its_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for preset, parts in {
        "cpu": ("elic x 0.125", "soap_fast_50", "intra-step", "W8A8", "committed comparison"),
        "gpu": ("elic x 1 ", "0.0002 for every optimizer"),
        "paper": ("lalic x 1", "1,774,305", "COCO"),
    }.items():
        assert main(["study", f"--preset={preset}", "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in parts)
    for arguments, reason in (
        (["--preset=paper"], "needs --data DIR with COCO 2017"),
        (["--optimizers=adam,pytorch_optimizer"], "the study is of adam, soap_fast"),
        (["--workers=-1"], "--workers is not negative"),
    ):
        assert main(["study", *arguments]) == 2
        assert reason in capsys.readouterr().err.splitlines()[-1]


def taken(config: Config, *given: Any) -> Run:
    """A run that ends at a loss which is lowest at the second rate of the CPU's grid."""
    loss = abs(math.log(config.lr / STUDIES["cpu"].grid[1]))
    return Run(Path("none"), {"rd_loss": loss, "config": config.as_dict()}, {})


def test_rates_of_the_committed_comparison_serve_where_the_settings_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, known = STUDIES["cpu"], _searches(COMMITTED)
    assert _searches(tmp_path / "none.json") == []
    trial = preset.trials[0]
    photos = load(None, trial.crop, stride(trial.model, trial.factor))
    settings = {"device": "cpu", "threads": 1, "images": photos.fingerprint()}
    monkeypatch.setattr(runner, "_finished", taken)
    for name in preset.optimizers:
        wanted = search_config(preset, trial, name, settings)
        found = runner._searched(wanted, preset, None, tmp_path, known)
        committed = [row for row in known if row["optimizer"] == name]
        assert found["lr"] in [row["lr"] for row in committed]
        assert found["known"]
    other = search_config(preset, trial, known[0]["optimizer"], {**settings, "threads": 2})
    assert runner._searched(other, preset, None, tmp_path, known)["lr"] == preset.grid[1]


# The whole


def test_a_tiny_study_is_reported_and_not_repeated(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ["--factor=0.05", "--steps=4", "--batch=1", "--seeds=1"]
    sizes += ["--grid", "1e-3", "--search-seeds=1"]
    more = ["--frequencies", "2", "--iterations=1", f"--data={photos}", f"--work={tmp_path}"]
    arguments = ["study", "--models=elic", *sizes, *more, "--threads=1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for title in (
        *("The paper's claims", "Do losses and steps agree?", "Outliers at the end", "Training"),
        *("Change of the R-D loss", "Output errors by rounding", "too small to show"),
    ):
        assert title in printed
    assert "in place of 1,774,305 at 1" in printed
    page = (tmp_path / "report.md").read_text()
    write_page(tmp_path / "printed.md", printed.rstrip())
    assert (tmp_path / "printed.md").read_text() in page
    for name in ("losses", "scores", "outliers", "rate_distortion"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in page
    rows = json.loads((tmp_path / "study.json").read_text())["results"]
    kinds = {
        kind: [row for row in rows if row["kind"] == kind]
        for kind in ("claim", "seen", "watched", "run", "quantized", "layers")
    }
    assert [row["variant"] for row in kinds["seen"]] == ["adam", "soap_fast_10", "soap_fast_2"]
    assert len(kinds["claim"]) == 10
    unmeasured = [row["claim"] for row in kinds["claim"] if row["measured"] == ["not measured"]]
    assert unmeasured == ["3 % better BD-rate"]
    assert all(len(row["looks"]) == 1 for row in kinds["watched"])
    assert not any("watched" in row for row in kinds["run"])
    assert len(kinds["layers"]) == 2
    assert kinds["layers"][0]["run"] == "elic_0.05/adam_lambda_0.013_seed_0"

    def again(*given: Any) -> None:
        raise AssertionError("it was kept")

    monkeypatch.setattr(quantize, "measured", again)
    monkeypatch.setattr(runner, "run", again)
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed


def test_what_no_table_and_no_picture_shows_is_not_kept() -> None:
    layers = {"a": [3.0000001, 2.0, 0.0], "b": [None, None, None]}
    look = {"step": 4, "intra": 0.123456789, "layers": layers}
    layer = {"layer": "a", "output_error": {"nearest": 1.23456789e-5}, "activations": {"all": 1}}
    rows = [
        {"kind": "run", "steps": 1234567, "diverged": False, "watched": [look]},
        {"kind": "watched", "run": "/some/where/elic_1/adam_seed_0", "looks": [look]},
        {"kind": "layers", "run": "elic_1/adam_seed_0", "layers": [layer]},
        {"kind": "claim", "measured": ["0.123456789"]},
    ]
    before = copy.deepcopy(rows)
    found = kept(rows)
    assert rows == before
    seen = {"step": 4, "intra": 0.123457, "layers": {"a": 3.0, "b": None}}
    left = {"layer": "a", "output_error": {"nearest": 1.23457e-5}}
    assert found == [
        {"kind": "run", "steps": 1234567, "diverged": False},
        {"kind": "watched", "run": "elic_1/adam_seed_0", "looks": [seen]},
        {"kind": "layers", "run": "elic_1/adam_seed_0", "layers": [left]},
        {"kind": "claim", "measured": ["0.123456789"]},
    ]


def test_a_dense_logarithmic_axis_has_plain_numbers() -> None:
    with plain_text():
        axes = Figure().subplots()
        axes.plot([2.5, 9.0])
        logarithmic(axes)
        axes.figure.canvas.draw()
        labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
        shown = {label.get_text() for label in labels} - {""}
    assert {"3", "5"} <= shown
    assert all(float(text) for text in shown)


def test_what_quantisation_costs_is_told_with_its_spread() -> None:
    def row(variant: str, change: float, quantized: str = report.LEAST) -> dict[str, Any]:
        kind = {"kind": "quantized", "group": "elic", "quantized": quantized}
        return {**kind, "variant": variant, "change": change}

    rows = [row("adam", 0.02), row("adam", 0.04), row("soap_fast", 0.01), row("soap_fast", 0.01)]
    rows += [row("adam", 9.0, "nearest, min-max"), {"kind": "bd_rate"}]
    assert report._lost(rows) == ["elic: R-D loss +1.00% +- 0.00%, Adam's +3.00% +- 1.41%"]


def test_steps_are_compared_with_those_of_the_rarest_refreshes() -> None:
    rows = [
        {"group": "elic", "optimizer": "soap_fast", "frequency": frequency, "step_ms": ms}
        for frequency, ms in ((5, 103.0), (10, 101.0), (50, 100.0))
    ]
    assert report._frequencies(rows) == ["elic: +3.0% at 5, +1.0% at 10"]
