"""A launch of a refresh fails, as a kernel may whose compilation finds no room: nothing is torn."""

from __future__ import annotations

import pytest
from straight import MOMENTS, Straight, same
from subjects import (
    BACKENDS,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
    without,
)

from soap_fast.fused.launcher import TritonLauncher

ONLY_TRITON = [backend for backend in BACKENDS if backend.values[0] == "triton"]
pytestmark = pytest.mark.usefixtures("one_thread")


class LaunchFailed(RuntimeError):
    """What an injected fault raises, and nothing else."""


class Failing:
    """Lets `left` launches pass from `on()` on, and fails at the next."""

    def __init__(self, monkeypatch) -> None:
        self.left, self.count, self.armed = -1, 0, False
        launch = TritonLauncher.__call__

        def counted(launcher, one):
            if self.armed:
                if self.count == self.left:
                    raise LaunchFailed(one.op)
                self.count += 1
            launch(launcher, one)

        monkeypatch.setattr(TritonLauncher, "__call__", counted)


@pytest.mark.parametrize("backend", ONLY_TRITON)
def test_every_launch_of_a_refresh(backend, monkeypatch):
    straight = Straight(backend, MOMENTS["refresh"])
    failing = Failing(monkeypatch)
    outcomes = []
    for at in range(100):
        params, optimizer = straight.ready()
        working = optimizer._backend.refresh_op

        def arming(*arguments, working=working):
            failing.armed = True
            return working(*arguments)

        optimizer._backend.refresh_op = arming
        failing.left, failing.count, failing.armed = at, 0, False
        try:
            optimizer.step()
        except LaunchFailed:
            failing.armed = False
        else:
            break
        optimizer._backend.refresh_op = working
        found = tensor_by_tensor(optimizer, params)
        for place, entry in enumerate(found):
            whole = straight.after[place], straight.not_refreshed[place]
            which = [same(*(without(e, "off_diagonal") for e in (entry, one))) for one in whole]
            assert any(which), (at, place)
            outcomes += ["after" if which[0] else "not refreshed"] * (place == 0)
        if outcomes[-1] == "after":
            take(optimizer, params, straight.later)
            assert same(tensor_by_tensor(optimizer, params), straight.end)
    assert failing.armed
    assert at >= 7
    assert set(outcomes) == {"after", "not refreshed"}
    assert outcomes[0] == "not refreshed"
    assert outcomes[-1] == "after"
