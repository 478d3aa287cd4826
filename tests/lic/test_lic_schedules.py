"""Learning rates over the steps, and epochs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.lic.training import Config
from bench.lic.training.schedules import Schedule

CONFIG = Config(model="hyperprior", optimizer="adam", lr=0.1, lam=0.013, steps=8, batch=1, crop=64)


def rates(config: Config, losses: list[float]) -> list[float]:
    """The rate of each step, when after each the held-out loss is the next of `losses`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule, seen = Schedule(config, optimizer), []
    for done, loss in enumerate(losses):
        schedule.before_step(done)
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.evaluated(loss)
    return seen


def test_multistep_falls_after_each_milestone() -> None:
    config = replace(CONFIG, schedule="multistep", milestones=(2, 5), gamma=0.5)
    assert rates(config, [1.0] * 8) == [0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025]


def test_constant_stays() -> None:
    assert rates(replace(CONFIG, schedule="constant"), [1.0] * 3) == [0.1] * 3


@given(st.lists(st.integers(1, 30), unique=True, max_size=5).map(sorted), st.floats(0.1, 0.9))
def test_multistep_is_what_torchs_own_does(milestones: list[int], gamma: float) -> None:
    config = replace(CONFIG, schedule="multistep", milestones=tuple(milestones), gamma=gamma)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    expected = []
    for _ in range(32):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates(config, [1.0] * 32) == pytest.approx(expected, rel=tolerances.RATES)


def test_plateau_falls_when_patience_ends_and_not_while_the_loss_falls() -> None:
    config = replace(CONFIG, schedule="plateau", gamma=0.5, patience=1)
    falling = [8.0, 7.0, 6.0, 5.0]
    assert rates(config, falling) == [0.1] * 4
    assert rates(config, [5.0, 6.0, 6.0, 6.0, 6.0]) == [0.1, 0.1, 0.1, 0.05, 0.05]


def test_plateau_goes_on_from_its_state() -> None:
    config = replace(CONFIG, schedule="plateau", gamma=0.5, patience=1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    first = Schedule(config, optimizer)
    for loss in (5.0, 6.0):
        first.evaluated(loss)
    second = Schedule(config, optimizer)
    second.load_state_dict(first.state_dict())
    second.evaluated(6.0)
    assert optimizer.param_groups[0]["lr"] == 0.05
