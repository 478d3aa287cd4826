"""The fused step under Triton's interpreter: recorded trajectories, the eager step, odd input."""

from __future__ import annotations

import copy
import os
import sys

import golden
import pytest
import tolerances
import torch
from hypothesis import given, settings
from oracle import OracleSOAP
from streams import parameters, set_gradients, train
from test_golden import compare_state, run
from test_plan import plan_options, shapes

from soap_fast import SOAP
from soap_fast.backends.triton.backend import interpreted
from soap_fast.backends.triton.programs import STEP
from soap_fast.step.layout import layout_of
from soap_fast.step.plan import plan_tensor

# conftest.py asks for the interpreter where there is no GPU, so in CI none of these is left out.
pytestmark = pytest.mark.skipif(
    not interpreted() or sys.platform != "linux",
    reason="interprets kernels on CPU tensors: set TRITON_INTERPRET=1; Triton is for Linux",
)

SHAPES = ((8, 8), (6, 4, 3, 3), (5,), (4, 1, 4), (), (3, 3), (7, 7, 7), (2, 9, 1, 7))


def follow(case: str, calls: int) -> None:
    trace = golden.load(case)
    fold = OracleSOAP([], **trace.kwargs).fold
    for call, params, optimizer in run(trace, backend="triton"):
        for i, param in enumerate(params):
            moved = (trace.params[call - 1][i] - trace.init[i]).abs().max()
            error = (param - trace.params[call - 1][i]).abs().max()
            assert error <= tolerances.TRACE * moved, f"call {call}, parameter {i}"
        for i, expected in enumerate(trace.states.get(call, [])):
            compare_state(optimizer.state[params[i]], expected, fold, f"call {call}, parameter {i}")
        if call == calls:
            return


@pytest.mark.parametrize("case", golden.CASES)
def test_recorded_trajectories_begin_the_same(case):
    """First bases, steps to the first refresh, and one after it."""
    follow(case, golden.load(case).kwargs.get("precondition_frequency", 10) + 2)


@pytest.mark.soak
@pytest.mark.skipif(
    "SOAP_FAST_EXAMPLES" not in os.environ, reason="takes 3 minutes: make soak runs it"
)
@pytest.mark.parametrize("case", golden.CASES)
def test_whole_recorded_trajectories(case):
    follow(case, 10**6)


def after_first_call(params, **options) -> SOAP:
    optimizer = SOAP(params, backend="eager", **options)
    train(optimizer, params, [0])
    return optimizer


def as_triton(optimizer: SOAP, params, **options):
    """The same parameters and state under the Triton backend."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(copies, backend="triton", **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, copies


def assert_close(one: SOAP, params, other: SOAP, others) -> None:
    """Parameters and state agree to rounding: 50 units of each tensor's largest entry."""
    for index, (p, q) in enumerate(zip(params, others, strict=True)):
        pairs = {"p": (p.detach().float(), q.detach().float())}
        mine, theirs = one.state[p], other.state[q]
        for key in ("exp_avg", "exp_avg_sq", "step", "skipped"):
            pairs[key] = (mine[key], theirs[key])
        for mode, (k, copied) in enumerate(zip(mine["GG"], theirs["GG"], strict=True)):
            if k is not None:
                pairs[f"GG{mode}"] = (k, copied)
                assert torch.equal(copied, copied.T)
        assert mine["calls"] == theirs["calls"]
        for key, (a, b) in pairs.items():
            # n = m / sqrt(v) amplifies the rounding of v where it is small: p moves by lr there.
            slack = tolerances.FUSED_PARAM if key == "p" else 0.0
            if key == "p" and p.dtype == torch.bfloat16:
                slack = slack + tolerances.BFLOAT16 * a.abs()
            largest = a.abs().max() if a.numel() else torch.tensor(0.0)
            allowed = tolerances.FUSED * largest + slack
            assert ((a - b).abs() <= allowed).all(), (index, key)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_grads": True, "precondition_1d": True},
        {"max_precond_dim": 6, "weight_decay": 0.1},
        {"merge_dims": True, "max_precond_dim": 30, "data_format": "channels_last"},
        {"correct_bias": False, "shampoo_beta": 0.8, "betas": (0.9, 0.0)},
    ],
)
def test_one_step_is_the_eager_one(options):
    params = parameters(SHAPES)
    eager = after_first_call(params, **options)
    triton, copies = as_triton(eager, params, **options)
    for optimizer, own in ((eager, params), (triton, copies)):
        train(optimizer, own, [1, 2])  # the second is a steady step
    assert_close(eager, params, triton, copies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_and_strides(dtype):
    params = parameters(((6, 4, 3, 3), (5, 7)), dtype=dtype)
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    params[1].data = params[1].data.T.contiguous().T
    eager = after_first_call(params)
    triton, copies = as_triton(eager, params)
    copies[0].data = copies[0].data.to(memory_format=torch.channels_last)
    train(eager, params, [1])
    set_gradients(copies, 1)
    copies[0].grad = copies[0].grad.to(memory_format=torch.channels_last)
    triton.step()
    assert copies[0].dtype == dtype
    assert copies[0].stride() == params[0].stride()
    assert_close(eager, params, triton, copies)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_leaves_its_tensor_untouched(poison):
    params = parameters(((6, 4, 3, 3), (5,), (8, 8)))
    triton, copies = as_triton(after_first_call(params), params)
    train(triton, copies, [1])
    before = [p.detach().clone() for p in copies], copy.deepcopy(triton.state_dict())
    set_gradients(copies, 2)
    for bad in (0, 1):
        copies[bad].grad.view(-1)[3] = poison
    triton.step()
    for index in (0, 1):
        assert torch.equal(copies[index], before[0][index])
        entry, old = triton.state[copies[index]], before[1]["state"][index]
        assert int(entry["skipped"]) == 1
        assert int(entry["step"]) == 1
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(entry[key], old[key])
        for mode, k in enumerate(entry["GG"]):
            assert k is None or torch.equal(k, old["GG"][mode])
    assert not torch.equal(copies[2], before[0][2])
    assert int(triton.state[copies[2]]["skipped"]) == 0


def test_eps_zero_and_zero_gradients_make_no_nan():
    params = parameters(((6, 3, 3, 3), (5,)))
    triton, copies = as_triton(after_first_call(params, eps=0.0), params, eps=0.0)
    for state in triton.state.values():
        state["exp_avg"].zero_()
    for param in copies:
        param.grad = torch.zeros_like(param)
    triton.step()
    assert all(bool(p.isfinite().all()) for p in copies)


def test_two_runs_end_in_the_same_bits_and_a_scheduler_is_followed():
    ends = []
    for _ in range(2):
        params = parameters(((6, 4, 3, 3), (5,)))
        optimizer = SOAP(params, backend="triton", precondition_frequency=3)
        for call in range(7):
            optimizer.param_groups[0]["lr"] = 1e-3 * (call + 1)
            train(optimizer, params, [call])
        ends.append([p.detach().clone() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    params = parameters(((6, 4, 3, 3), (5,)))
    eager = SOAP(params, backend="eager", precondition_frequency=3)
    for call in range(7):
        eager.param_groups[0]["lr"] = 1e-3 * (call + 1)
        train(eager, params, [call])
    for a, b in zip(ends[0], params, strict=True):
        assert (a - b).abs().max() < tolerances.SCHEDULED


def test_a_tensor_without_a_gradient_and_a_newcomer():
    params = parameters(((6, 4), (5,), (3, 4)))
    optimizer = SOAP(params[:2], backend="triton")
    train(optimizer, params[:2], range(3))
    set_gradients(params[:2], 3)
    params[1].grad = None
    kept = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], kept)
    assert optimizer.state[params[1]]["calls"] == 3
    assert int(optimizer.state[params[1]]["skipped"]) == 0
    optimizer.add_param_group({"params": [params[2]]})
    train(optimizer, params, range(4, 7))
    assert [optimizer.state[p]["calls"] for p in params] == [7, 6, 3]


@settings(max_examples=60)
@given(shape=shapes, options=plan_options)
def test_the_layout_of_moments_is_a_view_of_all_elements_but_padding(shape, options):
    layout = layout_of(plan_tensor(shape, options))
    flat = torch.arange(layout.elements)
    view = layout.state_view(flat)
    assert view.shape == shape
    assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    elements = flat.view(-1, layout.pitch)[:, : layout.inner].flatten()
    assert torch.equal(view.flatten().sort().values, elements)


def test_float64_is_refused_and_an_empty_tensor_stepped():
    double = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="float64"):
        SOAP([double], backend="triton")
    empty = torch.nn.Parameter(torch.randn(0, 4))
    train(SOAP([empty], backend="triton"), [empty], range(3))


def test_a_parameter_that_moves_is_followed_without_leaving_the_steady_state():
    params = parameters(((6, 4), (5,)))
    optimizer = SOAP(params, backend="triton")
    train(optimizer, params, range(3))
    steady = optimizer._backend.steady
    left_behind = params[0].data
    params[0].data = left_behind.clone()
    train(optimizer, params, [3])
    assert optimizer._backend.steady is steady
    assert steady is not None
    assert not torch.equal(params[0].data, left_behind)
    assert optimizer.state[params[0]]["calls"] == 4


@pytest.mark.parametrize("how", ["cleared", "deleted", "replaced"])
def test_entries_that_a_user_takes_away_end_the_steady_state(how):
    """What is in `optimizer.state` is the truth, also between two calls without a refresh."""
    params = parameters(((6, 4), (5,)))
    optimizer = SOAP(params, backend="triton", precondition_frequency=20)
    train(optimizer, params, range(3))
    assert optimizer._backend.steady is not None
    entries = dict(optimizer.state)
    if how == "cleared":
        optimizer.state.clear()
    elif how == "deleted":
        del optimizer.state[params[0]]
    else:
        optimizer.state[params[0]] = copy.deepcopy(entries[params[0]])
    train(optimizer, params, [3])
    calls = [optimizer.state[p]["calls"] for p in params]
    assert calls == {"cleared": [1, 1], "deleted": [1, 4], "replaced": [4, 4]}[how]
    assert entries[params[0]]["calls"] == 3
    assert torch.equal(entries[params[0]]["step"], torch.tensor(2.0))


def test_what_no_kernel_serves_is_an_error_where_triton_was_asked_for():
    strange = torch.nn.Parameter(torch.randn(3, 5, 3, 5, 3, 5, 3)[::2, ::2, ::2, ::2, ::2, ::2])
    optimizer = SOAP([strange], backend="triton", max_precond_dim=1)
    strange.grad = torch.randn_like(strange)
    with pytest.raises(ValueError, match=r"strides .* more axes than a kernel walks"):
        optimizer.step()


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_input_precision_reaches_the_products_and_survives_a_copy(precision):
    params = parameters(((6, 4, 3, 3), (8, 8)))
    optimizer = SOAP(params, backend="triton", input_precision=precision)
    copied = copy.deepcopy(optimizer)
    for each in (optimizer, copied):
        own = each.param_groups[0]["params"]
        train(each, own, range(2))
        (engine,) = each._backend.engines.values()
        launches = (launch for place in STEP for launch in engine.launches[place])
        used = {launch.op: launch.constants.get("PRECISION") for launch in launches}
        assert used["rotate"] == precision
        assert used["gram"] == ("ieee" if precision == "ieee" else "tf32x3")
    with pytest.raises(ValueError, match="input_precision='fp8' is not one of"):
        SOAP(params, input_precision="fp8")


def test_a_default_device_does_not_reach_the_tables():
    params = parameters(((6, 4, 3, 3), (5,)))
    optimizer = SOAP(params, backend="triton", precondition_frequency=2)
    gradients = [torch.randn(p.shape) for p in params]
    with torch.device("meta"):
        for call in range(5):
            optimizer.param_groups[0]["lr"] = 1e-3 * (call + 1)
            for param, grad in zip(params, gradients, strict=True):
                param.grad = torch.empty_like(grad, device="cpu").copy_(grad)
            optimizer.step()
    assert all(optimizer.state[p]["exp_avg"].device.type == "cpu" for p in params)
    assert all(bool(p.isfinite().all()) for p in params)
