"""`python -m bench.lic search`: the same rule for every optimizer, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tolerances
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


def parabola(best: float) -> tuple[list[tuple[float, int]], search.Callable]:
    """(rate, seed) in the order of trying, and a loss that is lowest at `best`; large ones diverge.

    Seed 1 is worse than seed 0 by 0.02 everywhere, seed 2 better by as much.
    """
    tried: list[tuple[float, int]] = []

    def loss(rate: float, number: int) -> float:
        tried.append((rate, number))
        return math.inf if rate > 0.1 else math.log(rate / best) ** 2 + (0, 0.02, -0.02)[number]

    return tried, loss


def chosen(losses: search.Losses) -> float:
    """The lowest mean of those that three seeds have tried."""
    whole = {rate: sum(of) for rate, of in losses.items() if len(of) == 3}
    return min(whole, key=whole.__getitem__)


@given(st.floats(1.5e-4, 0.019))
def test_the_chosen_rate_has_the_lowest_mean_and_both_neighbours_three_seeds(best: float) -> None:
    tried, loss = parabola(best)
    losses = search.best_rates(loss, search.GRID, 3)
    rate = chosen(losses)
    whole = sorted(one for one, of in losses.items() if len(of) == 3)
    place = whole.index(rate)
    for neighbour in (whole[place - 1], whole[place + 1]):
        assert abs(math.log(neighbour / rate)) == pytest.approx(
            math.log(search.RATIO), abs=tolerances.RATE_STEP
        )
    assert abs(math.log(rate / best)) <= math.log(search.RATIO) / 2 + tolerances.RATE_STEP
    assert len(set(tried)) == len(tried), "no run is taken twice"
    assert tried[: len(search.GRID)] == [(one, 0) for one in search.GRID]
    coarse = min(search.GRID, key=lambda one: abs(math.log(one / best)))
    moves = round(abs(math.log(rate / coarse)) / math.log(search.RATIO))
    assert len(tried) == len(search.GRID) + 9 + 3 * moves - 1


def test_search_follows_a_best_rate_beyond_the_grid() -> None:
    _, loss = parabola(0.0384)
    assert chosen(search.best_rates(loss, (9.6e-3,), 3)) == pytest.approx(
        0.0384, rel=tolerances.NEAREST_RATE
    )


def test_a_lucky_seed_does_not_choose_the_rate() -> None:
    def loss(rate: float, number: int) -> float:
        return 0.8 if (rate, number) == (1e-3, 0) else abs(math.log(rate / 1.4e-3)) + 1

    assert chosen(search.best_rates(loss, (1e-4, 1e-3), 3)) == 1.4e-3


def test_search_ends_where_all_diverge_and_where_the_loss_falls_for_ever() -> None:
    diverged = search.best_rates(lambda rate, number: math.inf, search.GRID, 3)
    assert sorted(len(of) for of in diverged.values()) == [1] * 5 + [3] * 3
    falling = search.best_rates(lambda rate, number: 1 / rate, (1e-3,), 3)
    assert len(falling) == search.MOVES + 3


def test_a_rate_at_the_edge_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    found = search.searched(CONFIG, lambda rate, seed: 1 / rate, search.GRID, 3)
    assert found["at_edge"]
    assert found["flat"]["at_least"]
    assert "still at the edge" in capsys.readouterr().err


def test_flat_is_what_lies_within_the_spread_of_the_best() -> None:
    best = [1.0, 1.1, 0.9]  # spread 0.1
    losses = {1.0: [3.0] * 3, 1.4: [1.09] * 3, 2.0: best, 2.8: [1.11] * 3, 4.0: [1.0], 9.0: best}
    found = search.flatness(losses, 2.0, 3)
    assert (found["low"], found["high"], found["at_least"]) == (1.4, 2.0, False)
    assert found["factor"] == pytest.approx(2 / 1.4)
    assert found["spread"] == pytest.approx(0.1)
    del losses[1.0]
    assert search.flatness(losses, 2.0, 3)["at_least"], "trying ended where it was still flat"


def test_one_seed_tells_no_flatness_and_a_diverged_best_none() -> None:
    assert search.flatness({1e-3: [1.0]}, 1e-3, 1)["factor"] is None
    assert search.flatness({1e-3: [1.0, math.inf]}, 1e-3, 2)["factor"] is None


def test_a_search_takes_its_seeds_from_the_configs_on() -> None:
    seen = set()

    def loss(rate: float, seed: int) -> float:
        seen.add(seed)
        return abs(math.log(rate / 1.2e-3))

    config = search.replace(CONFIG, seed=1000)
    found = search.searched(config, loss, search.GRID, 3)
    assert seen == {1000, 1001, 1002}
    assert found["lr"] == 1.2e-3
    assert not found["at_edge"]
    (best,) = (one for one in found["tried"] if one["lr"] == 1.2e-3)
    assert best == {"lr": 1.2e-3, "rd_loss": 0.0, "rd_losses": [0.0] * 3}


def test_a_rate_is_judged_by_the_mean_over_seeds_at_the_end(data: Path) -> None:
    images = load(str(data), 64, 64)
    config = search.replace(CONFIG, steps=2)
    (found,) = search.search([config], images, (1e-3,), 2)
    (row,) = (one for one in found["tried"] if one["lr"] == 1e-3)
    alone = [
        search._final_loss(search.replace(config, seed=seed, lr=1e-3), images) for seed in (0, 1)
    ]
    assert alone[0] != alone[1]
    assert row["rd_losses"] == alone
    assert row["rd_loss"] == pytest.approx(sum(alone) / 2)


def test_search_writes_the_rates_that_the_demo_reads(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "search.json"
    more = ["--optimizers=adam,soap_fast,torch.optim:SGD", "--grid", "1e-3", "2e-3", "--seeds=2"]
    assert main(tiny(data, *more, f"--json={target}")) == 0
    found = results(target)
    assert [one["optimizer"] for one in found] == ["adam", "soap_fast", "torch.optim:SGD"]
    for one in found:
        whole = [run for run in one["tried"] if len(run["rd_losses"]) == 2]
        assert len(whole) >= 3
        best = min(whole, key=lambda run: run["rd_loss"])
        assert search.searched_rates((one["optimizer"],), target) == {one["optimizer"]: best["lr"]}


def test_search_runs_by_the_recipe_of_training(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "search.json"
    recipe = ["--schedule=multistep", "--milestones", "1", "--gamma=0.5", "--amp=bf16"]
    more = ["--optimizers=adam", "--grid", "1e-3", "--seeds=1", "--workers=1", f"--json={target}"]
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
    search._final_loss(config, load(str(data), 64, 64))
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
