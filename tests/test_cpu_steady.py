"""The fast path of the CPU's step: the same bits as the whole way, and nothing assumed wrongly."""

from __future__ import annotations

import sys

import pytest
import torch
from streams import assert_same_bits, needs_native, parameters, set_gradients, snapshot, train
from test_cpu_step import assert_same_step, twins

from soap_fast import SOAP

pytestmark = needs_native


def whole_way(optimizer) -> None:
    optimizer._backend.forget()


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
def test_the_fast_path_takes_the_same_steps_to_the_bit(schedule):
    ends = []
    for before in (lambda optimizer: None, whole_way):
        params = parameters(((6, 4, 3, 3), (5,), (9, 7), ()))
        options = {"precondition_frequency": 4, "refresh_schedule": schedule}
        optimizer = SOAP(params, backend="native", **options)
        fast = 0
        for call in range(14):
            set_gradients(params, call)
            if call == 9:  # at the addresses of the last call
                for param in params:
                    param.grad = param.grad.clone()
            if call == 6:
                optimizer.param_groups[0]["lr"] = 1e-3
            if call == 10:
                params[0].data = params[0].data.clone()
            before(optimizer)
            was = optimizer._backend.steady
            optimizer.step()
            fast += was is not None and optimizer._backend.steady is was
        ends.append((fast, snapshot(optimizer, params)))
    assert ends[0][0] >= (5 if schedule == "periodic" else 1)
    assert ends[1][0] == 0
    assert_same_bits(ends[0][1], ends[1][1])


def test_no_python_runs_per_tensor_in_a_steady_step():
    """Calls of Python functions in a step do not grow with the number of tensors."""
    counts = []
    for count in (3, 30):
        params = parameters([(6, 4)] * count)
        optimizer = SOAP(params, backend="native")
        train(optimizer, params, range(3))
        set_gradients(params, 3)
        called = 0

        def counting(frame, event, argument):
            nonlocal called
            called += event == "call"

        sys.setprofile(counting)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
        counts.append(called)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("what", ["calls", "Q", "exp_avg", "scale", "lr"])
def test_what_a_fast_step_may_not_assume_is_noticed(what):
    """Against plain torch: a clock, state, a gradient scaler's numbers, an lr in a tensor."""
    rate = [torch.tensor(3e-3), torch.tensor(3e-3)]
    (eager, params), (native, others) = twins(((6, 4), (5,)), precondition_frequency=5)
    for which, (optimizer, own) in enumerate(((eager, params), (native, others))):
        if what == "lr":
            optimizer.param_groups[0]["lr"] = rate[which]
        train(optimizer, own, range(2, 4))
        entry = optimizer.state[own[0]]
        if what == "calls":
            entry["calls"] = 5
        elif what == "Q":
            entry["Q"][0] = entry["Q"][0].flip(1)
        elif what == "exp_avg":
            entry["exp_avg"] = 2 * entry["exp_avg"]
        elif what == "scale":
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
            train(optimizer, own, [4])
            del optimizer.grad_scale, optimizer.found_inf
        else:
            rate[which].fill_(1e-2)
        train(optimizer, own, range(5, 7))
    assert_same_step(eager, params, native, others)
