"""The optimizer follows every recorded trajectory of the reference, parameters and state."""

from __future__ import annotations

import golden
import pytest
import tolerances
import torch
from oracle import OracleSOAP
from streams import backends

from soap_fast import SOAP


def run(trace: golden.Trace, dtype: torch.dtype = torch.float32, **options):
    """Yield (call, parameters, optimizer) after each call of a trace."""
    params = [torch.nn.Parameter(p.to(dtype, copy=True)) for p in trace.init]
    optimizer = SOAP(params, **trace.kwargs, **options)
    for call, grads in enumerate(trace.grads, start=1):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
        yield call, params, optimizer


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", golden.CASES)
def test_parameters_at_every_call(case, backend):
    trace = golden.load(case)
    for call, params, _ in run(trace, backend=backend):
        for i, param in enumerate(params):
            expected = trace.params[call - 1][i]
            moved = (expected - trace.init[i]).abs().max()
            if call == 1:
                assert torch.equal(param, trace.init[i]), "the first call moved a parameter"
                continue
            error = (param - expected).abs().max() / moved
            assert error <= tolerances.TRACE, f"call {call}, parameter {i}: {error:.1e}"


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", golden.CASES)
def test_states_at_recorded_calls(case, backend):
    trace = golden.load(case)
    fold = OracleSOAP([], **trace.kwargs).fold
    seen = set()
    for call, params, optimizer in run(trace, backend=backend):
        for i, expected in enumerate(trace.states.get(call, [])):
            compare_state(optimizer.state[params[i]], expected, fold, f"call {call}, parameter {i}")
            seen.add(call)
    assert {1, 11, len(trace.grads)} <= seen


def compare_state(state: dict, expected: dict, fold, where: str) -> None:
    """Compare one tensor's state; a column of Q has no sign of its own, and exp_avg follows it."""
    assert state["step"] == expected["step"], where
    assert state["calls"] == expected["step"] + 1, where
    assert state["skipped"] == 0, where
    close(state["exp_avg_sq"], expected["exp_avg_sq"], f"{where}: exp_avg_sq")

    exp_avg = fold(expected["exp_avg"])
    for mode, (k, q) in enumerate(zip(state["GG"], state["Q"], strict=True)):
        if k is not None:
            close(k, expected["GG"][mode], f"{where}: GG[{mode}]")
            signs = (q * expected["Q"][mode]).sum(0).sign()
            close(q, expected["Q"][mode] * signs, f"{where}: Q[{mode}]")
        elif mode in expected["Q"]:  # of size 1: the identity here, perhaps -1 in the reference
            signs = expected["Q"][mode].reshape(1).sign()
        else:  # no factor on either side
            continue
        exp_avg = exp_avg * signs.reshape([-1] + [1] * (exp_avg.dim() - mode - 1))
    close(fold(state["exp_avg"]), exp_avg, f"{where}: exp_avg")


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerances.TRACE, f"{what}: {error:.1e}"


@pytest.mark.parametrize("case", golden.CASES)
def test_traces_are_read_as_numpy_reads_them(case):
    numpy = pytest.importorskip("numpy")
    path = golden.FOLDER / f"{case}.npz"
    found = golden.arrays(path)
    with numpy.load(path) as file:
        assert set(file.files) == set(found)
        for key in file.files:
            assert str(found[key].dtype).removeprefix("torch.") == str(file[key].dtype)
            assert numpy.array_equal(file[key], found[key].numpy()), key
