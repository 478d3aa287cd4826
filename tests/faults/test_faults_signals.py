"""Handlers of any signal save or raise at any line of a step: what is saved loads, and goes on."""

from __future__ import annotations

import random
import signal
import sys
import time

import pytest
import torch
from injected import CtrlC
from signals import NUMBERS, Handlers, Sender, Told
from soaking import SOAKING, some_of
from straight import CASES, MOMENTS, Saved, Straight
from streams import backends
from subjects import BACKENDS, one_thread  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

from soap_fast import ambient

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="has none of these signals"),
]
ACTS = ["save", "raise", "save and raise"]
# Moments of a step at which real signals come; kernels that are interpreted take their time.
RANDOM = {"eager": 60, "native": 60, "triton": 3}
LONG = {"eager": 1000, "native": 1000, "triton": 50}


@pytest.fixture(autouse=True)
def as_before():
    yield
    # torch's own no_grad around every optimizer's step may be interrupted as it is left.
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("backend", "moment"), CASES)
def test_at_any_line(backend, moment):
    """Another signal and another act at each, since all are to be met alike."""
    straight = Straight(backend, MOMENTS[moment])
    _, optimizer = straight.ready()
    with CtrlC() as lines:
        optimizer.step()
    most = {"most": 3, "soaking": 30} if backend == "triton" else {"most": 120}
    for place, at in enumerate(some_of(lines.count, **most)):
        number, act = NUMBERS[place % len(NUMBERS)], ACTS[place % len(ACTS)]
        params, optimizer = straight.ready()
        handlers = Handlers(optimizer, params, ACTS)
        with CtrlC(at, number, lambda handlers=handlers, act=act: handlers.act(act)) as sent:
            raised = steps(optimizer, handlers)
        where = f"{act} at line {at} of {lines.count}, {sent.raised_in}"
        check(straight, optimizer, params, handlers, raised, where)


def steps(optimizer, handlers) -> bool:
    """One step, as far as it comes; whether an exception ended it."""
    try:
        optimizer.step()
        handlers.waiting = False
    except Exception as error:
        if not isinstance(error.__cause__ or error, Told):  # Triton's interpreter wraps what it can
            raise
        return True
    finally:
        torch.set_grad_enabled(True)
    return False


def check(straight, optimizer, params, handlers, raised, where) -> None:
    assert not handlers.refused, (where, handlers.refused)
    left = straight.check_saved(Saved.of(optimizer, params), f"{where}, afterwards")
    assert raised or left == ["after"] * len(params), (where, left)
    for number, saved in enumerate(handlers.saved):
        straight.check_saved(saved, f"{where}, save {number}")
    assert ambient._precision._inside == 0, where


class Signalling(TorchDispatchMode):
    """Sends a signal behind operator number `at`, in Python code that is called by the operator."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.count == self.at:
            signal.raise_signal(NUMBERS[self.at % len(NUMBERS)])
        self.count += 1
        return result


@pytest.mark.parametrize("backend", backends())
def test_behind_any_operator_that_a_mode_sees(backend):
    straight = Straight(backend, MOMENTS["refresh"])
    _, optimizer = straight.ready()
    with Signalling() as operators:
        optimizer.step()
    for at in some_of(operators.count, 60):
        params, optimizer = straight.ready()
        act = ACTS[at % len(ACTS)]
        with Handlers(optimizer, params, [act]) as handlers, Signalling(at):
            raised = steps(optimizer, handlers)
        where = f"{act} at operator {at} of {operators.count}"
        check(straight, optimizer, params, handlers, raised, where)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_signals_at_random_moments(backend):
    seed = random.SystemRandom().randrange(2**32) if SOAKING else 0
    at_random(backend, (LONG if SOAKING else RANDOM)[backend], random.Random(seed), f"seed {seed}")


def at_random(backend: str, moments: int, chosen: random.Random, where: str) -> None:
    cases = [case.values[1] for case in CASES if case.values[0] == backend]
    straights = [Straight(backend, MOMENTS[moment]) for moment in cases]
    saves = raises = 0
    with Sender(chosen) as sender:
        for moment in range(moments):
            straight = chosen.choice(straights)
            lasting = duration(straight)
            params, optimizer = straight.ready()
            acts = chosen.sample(ACTS, len(ACTS))
            with Handlers(optimizer, params, acts) as handlers:
                try:
                    sender.send(1.2 * lasting)
                    raised = steps(optimizer, handlers)
                except Told:  # before the step, or behind it
                    raised = True
                finally:
                    handlers.waiting = False
                    sender.wait()  # or the rest would end this process
            check(straight, optimizer, params, handlers, raised, f"{where}, moment {moment}")
            saves, raises = saves + len(handlers.saved), raises + raised
    assert saves > moments // 4
    assert raises > moments // 4


def duration(straight: Straight, known: dict[int, float] = {}) -> float:  # noqa: B006
    """Seconds of the step, by its first time."""
    if id(straight) not in known:
        _, optimizer = straight.ready()
        start = time.perf_counter()
        optimizer.step()
        known[id(straight)] = time.perf_counter() - start
    return known[id(straight)]
