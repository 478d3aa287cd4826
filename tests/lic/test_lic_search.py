"""`python -m bench.lic search`: the same budget for every optimizer, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lic import search
from bench.lic.__main__ import main
from bench.lic.data import load
from bench.lic.training import Config
from bench.lic.training.schedules import Schedule

CONFIG = Config(
    model="hyperprior",
    factor=1 / 24,
    optimizer="adam",
    lr=1e-3,
    lam=0.013,
    steps=1,
    batch=1,
    crop=64,
)


def tiny(data: Path, *more: str) -> list[str]:
    flags = [f"--data={data}", f"--factor={1 / 24}", "--steps=2", "--batch=1", "--threads=1"]
    return ["search", *flags, *more]


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def parabola(best: float) -> tuple[list[float], search.Callable[[float], float]]:
    """Rates in the order of trying, and a loss that is lowest at `best`; large ones diverge."""
    tried: list[float] = []

    def loss(rate: float) -> float:
        tried.append(rate)
        return math.inf if rate > 0.1 else math.log(rate / best) ** 2

    return tried, loss


def test_search_follows_a_best_rate_beyond_the_grid() -> None:
    tried, loss = parabola(0.0384)
    losses = search.best_rates(loss, search.GRID, search.FURTHER)
    assert min(losses, key=losses.__getitem__) == 0.0384
    assert sorted(tried) == pytest.approx([*search.GRID, 0.0192, 0.0384, 0.0768])


def test_search_looks_closer_where_the_best_rate_is_inside() -> None:
    tried, loss = parabola(0.0015)
    losses = search.best_rates(loss, search.GRID, search.FURTHER)
    assert tried[: len(search.GRID)] == list(search.GRID)
    assert abs(math.log(min(losses, key=losses.__getitem__) / 0.0015)) < math.log(2) / 4


@given(st.floats(1e-5, 0.09))
def test_every_optimizer_has_the_same_budget(best: float) -> None:
    tried, loss = parabola(best)
    losses = search.best_rates(loss, search.GRID, search.FURTHER)
    assert len(set(tried)) == len(tried) == len(search.GRID) + search.FURTHER
    assert losses.keys() == set(tried)


def test_a_rate_at_the_edge_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "_final_loss", lambda config, rate, *rest: 1 / rate)
    found = search._search_one(CONFIG, None, search.GRID, 1)
    assert found["at_edge"]
    assert "still at the edge" in capsys.readouterr().err


def test_a_rate_is_judged_by_the_mean_over_seeds_at_the_end(data: Path) -> None:
    images = load(str(data), 64, 64)
    alone = [
        search._final_loss(search.replace(CONFIG, seed=seed, steps=2), 1e-3, images, 1)
        for seed in (0, 1)
    ]
    assert alone[0] != alone[1]
    both = search._final_loss(search.replace(CONFIG, steps=2), 1e-3, images, 2)
    assert both == pytest.approx(sum(alone) / 2)


def test_search_writes_the_rates_that_the_demo_reads(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "search.json"
    more = ["--optimizers=adam,soap_fast,torch.optim:SGD", "--grid", "1e-3", "2e-3"]
    assert main(tiny(data, *more, f"--json={target}")) == 0
    found = results(target)
    assert [len(one["tried"]) for one in found] == [2 + search.FURTHER] * 3
    for one in found:
        best = min(one["tried"], key=lambda run: run["rd_loss"])
        assert search.searched_rates((one["optimizer"],), target) == {one["optimizer"]: best["lr"]}


def test_search_runs_by_the_recipe_of_training(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "search.json"
    recipe = ["--schedule=multistep", "--milestones", "1", "--gamma=0.5", "--amp=bf16"]
    more = ["--optimizers=adam", "--grid", "1e-3", "--workers=1", f"--json={target}"]
    assert main(tiny(data, *more, *recipe)) == 0
    (found,) = results(target)
    config = found["config"]
    assert (config["schedule"], config["milestones"]) == ("multistep", [1])
    assert (config["gamma"], config["amp"]) == (0.5, "bf16")


@pytest.mark.parametrize(("schedule", "evaluations"), [("cosine", 1), ("plateau", 4)])
def test_plateau_acts_while_rates_are_searched(
    schedule: str, evaluations: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Schedule, "evaluated", lambda schedule, loss: seen.append(loss))
    config = search.replace(CONFIG, schedule=schedule, steps=4)
    search._final_loss(config, 1e-3, load(str(data), 64, 64), 1)
    assert len(seen) == evaluations


def test_what_cannot_be_resumed_is_not_said_to_be(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "search", stop)
    assert main(tiny(data, "--json=-")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped at once"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has the rates of the demo's model and optimizers"),
        (["--optimizers=sgd", "--json=-"], "no optimizer 'sgd'"),
        (["--grid", "0", "--json=-"], "0 is not a positive number"),
        (["--crop=65", "--json=-"], "not a positive multiple of 64"),
        (["--json=/"], "is a folder"),
        (["--workers=-1", "--json=-"], "take 0 or more"),
        (["--milestones", "3", "--json=-"], "give both, or none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(tiny(data, *arguments))
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1
