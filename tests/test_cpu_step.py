"""The extension's step on the CPU against plain torch: shapes, strides, options, bad input."""

from __future__ import annotations

import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    assert_same_bits,
    needs_native,
    parameters,
    set_gradients,
    snapshot,
    train,
)
from test_plan import plan_options, shapes

from soap_fast import SOAP
from soap_fast.backends.cpu_step import CpuStep, serves
from soap_fast.step.call import UNSCALED

pytestmark = needs_native

SHAPES = ((8, 8), (6, 4, 3, 3), (5,), (4, 1, 4), (), (7, 7, 7), (2, 9, 1, 7), (40, 50, 5, 5))


def twins(shapes, dtype=torch.float32, **options):
    """The same parameters and state under eager and under native, after two calls of eager."""
    begun = parameters(shapes, dtype=dtype)
    optimizer = SOAP(begun, backend="eager", **options)
    train(optimizer, begun, range(2))
    pairs = []
    for backend in ("eager", "native"):
        params = [torch.nn.Parameter(p.detach().clone()) for p in begun]
        own = SOAP(params, backend=backend, **options)
        own.load_state_dict(optimizer.state_dict())
        pairs.append((own, params))
    return pairs


def assert_same_step(one, params, other, others) -> None:
    """To rounding: of products of numbers of either sign, summed in another order."""
    for index, (p, q) in enumerate(zip(params, others, strict=True)):
        mine, theirs = one.state[p], other.state[q]
        tensors = {key: (mine[key], theirs[key]) for key in ("exp_avg", "exp_avg_sq")}
        factors = zip(mine["GG"], theirs["GG"], strict=True)
        tensors |= {f"K{m}": pair for m, pair in enumerate(factors)}
        for key, (a, b) in tensors.items():
            if a is not None and a.numel():
                assert (a - b).abs().max() <= tolerances.CPU_STEP * a.abs().max(), (index, key)
        # n = m / sqrt(v) amplifies rounding where v is small: p moves by lr there.
        assert (p - q).abs().max() <= tolerances.CPU_STEP_PARAM if p.numel() else True, index
        assert mine["calls"] == theirs["calls"]
        assert torch.equal(mine["step"], theirs["step"])
        for k in theirs["GG"]:
            assert k is None or torch.equal(k, k.T)


@given(
    shape=shapes,
    planning=plan_options,
    normalize=st.booleans(),
    correct=st.booleans(),
    beta_s=st.sampled_from([-1.0, 0.0, 0.8]),
    strided=st.booleans(),
)
def test_a_step_is_the_eager_one(shape, planning, normalize, correct, beta_s, strided):
    options = {
        "max_precond_dim": planning.max_precond_dim,
        "merge_dims": planning.merge_dims,
        "precondition_1d": planning.precondition_1d,
        "data_format": planning.data_format,
        "normalize_grads": normalize,
        "correct_bias": correct,
        "shampoo_beta": beta_s,
        "weight_decay": 0.1,
    }
    (eager, params), (native, others) = twins((shape,), **options)
    for optimizer, own in ((eager, params), (native, others)):
        set_gradients(own, 2)
        if strided and len(shape) > 1:
            own[0].grad = own[0].grad.movedim(0, -1).contiguous().movedim(-1, 0)
            own[0].data = own[0].data.movedim(-1, 0).contiguous().movedim(0, -1)
        optimizer.step()
    assert_same_step(eager, params, native, others)


def test_many_tensors_at_once_and_again():
    (eager, params), (native, others) = twins(SHAPES)
    for call in range(2, 5):
        train(eager, params, [call])
        train(native, others, [call])
    assert_same_step(eager, params, native, others)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_runs_end_in_the_same_bits(threads):
    before = torch.get_num_threads()
    ends = []
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            params = parameters(SHAPES)
            optimizer = SOAP(params, backend="native", precondition_frequency=2)
            train(optimizer, params, range(5))
            ends.append([p.detach().clone() for p in params])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_step_has_the_same_bits_on_any_number_of_threads():
    before = torch.get_num_threads()
    params = parameters(SHAPES)
    begun = SOAP(params, backend="native")
    train(begun, params, range(2))
    ends = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            own = [torch.nn.Parameter(p.detach().clone()) for p in params]
            optimizer = SOAP(own, backend="native")
            optimizer.load_state_dict(begun.state_dict())
            # Without the last, which is more than a thread's share and goes by the BLAS's threads.
            train(optimizer, own[:-1], [2])
            ends.append([p.detach().clone() for p in own[:-1]])
    finally:
        torch.set_num_threads(before)
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], end, strict=True))


def test_a_tensor_larger_than_a_threads_share_is_stepped_by_all():
    (eager, params), (native, others) = twins(((96, 64, 3, 3), (5,)))
    train(eager, params, [2])
    train(native, others, [2])
    assert_same_step(eager, params, native, others)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_leaves_its_tensor_untouched_to_the_bit(poison):
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend="native")
    train(optimizer, params, range(3))
    values, state = snapshot(optimizer, params)
    set_gradients(params, 3)
    params[1].grad.view(-1)[5] = poison
    optimizer.step()
    entry, old = optimizer.state[params[1]], state["state"][1]
    assert torch.equal(params[1], values[1])
    assert int(entry["skipped"]) == 1
    assert torch.equal(entry["step"], old["step"])
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(entry[key], old[key])
    for mode, k in enumerate(entry["GG"]):
        assert k is None or torch.equal(k, old["GG"][mode])
    assert not torch.equal(params[0], values[0])


def test_eps_zero_and_zero_gradients_make_no_nan():
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend="native", eps=0.0)
    train(optimizer, params, [0])
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in params)


def test_moments_move_once_and_then_stay_where_they_are():
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend="native")
    train(optimizer, params, range(2))
    addresses = [optimizer.state[p]["exp_avg"].data_ptr() for p in params]
    train(optimizer, params, range(2, 4))
    assert addresses == [optimizer.state[p]["exp_avg"].data_ptr() for p in params]


def test_what_has_moved_is_followed():
    params = parameters(((6, 4, 3, 3), (5,)))
    optimizer = SOAP(params, backend="native")
    train(optimizer, params, range(3))
    left_behind = params[0].data
    kept = left_behind.clone()
    params[0].data = left_behind.clone()
    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"].clone()
    params[1].grad = None
    params[0].grad = torch.randn_like(params[0])
    optimizer.step()
    assert torch.equal(left_behind, kept)
    assert not torch.equal(params[0].data, kept)
    assert [optimizer.state[p]["calls"] for p in params] == [4, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_dtypes_are_read_and_rounded_as_by_plain_torch(dtype):
    (eager, params), (native, others) = twins(((6, 4, 3, 3), (5,), (9, 7)), dtype=dtype)
    for optimizer, own in ((eager, params), (native, others)):
        set_gradients(own, 2)
        optimizer.step()
    assert all(serves(call) for call in native._calls(UNSCALED))
    for one, other in zip(params, others, strict=True):
        # Before rounding they agree to float32's rounding: at most one unit of the small dtype.
        assert ((one - other).abs() <= torch.finfo(dtype).eps * one.abs()).all()
        assert (one == other).float().mean() > 0.98


def test_float64_is_left_to_plain_torch():
    params = parameters(((6, 4), (5,)), dtype=torch.float64)
    optimizer = SOAP(params, backend="native")
    train(optimizer, params, range(3))
    assert not any(serves(call) for call in optimizer._calls(UNSCALED))
    assert all(bool(p.isfinite().all()) for p in params)


def test_a_failure_before_moments_are_carried_gives_all_bases_back(monkeypatch):
    params = parameters(((8, 8), (8, 5)))
    optimizer = SOAP(params, precondition_frequency=4, backend="native")
    train(optimizer, params, range(4))
    before = snapshot(optimizer, params)[1]["state"]

    def breaks(*_):
        raise MemoryError

    monkeypatch.setattr(CpuStep, "carry", breaks)
    set_gradients(params, 4)
    with pytest.raises(MemoryError):
        optimizer.step()
    monkeypatch.undo()
    after = snapshot(optimizer, params)[1]["state"]
    for index in range(2):
        assert_same_bits(after[index]["Q"], before[index]["Q"])
        assert torch.equal(after[index]["refreshes"], before[index]["refreshes"])
    train(optimizer, params, range(5, 10))


def test_a_transposed_basis_of_the_users_is_read_as_it_is():
    params, others = parameters(((8, 8),)), parameters(((8, 8),))
    one, other = SOAP(params, backend="native"), SOAP(others, backend="native")
    train(one, params, range(2))
    train(other, others, range(2))
    one.state[params[0]]["Q"][0] = one.state[params[0]]["Q"][0].T  # the same memory
    other.state[others[0]]["Q"][0] = other.state[others[0]]["Q"][0].T.contiguous()
    train(one, params, [2])
    train(other, others, [2])
    assert torch.equal(params[0], others[0])


def test_tables_that_do_not_fit_are_refused():
    step = CpuStep()
    assert step([]) == []
    arguments = [
        torch.zeros(1, 17, dtype=torch.int64),
        torch.zeros(1, 11, dtype=torch.float64),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.zeros(0, 2, dtype=torch.int64),
        torch.zeros(1, 8),
        torch.zeros(1, dtype=torch.bool),
    ]
    with pytest.raises(RuntimeError, match="tensors is not a contiguous table of 18 columns"):
        torch.ops.soap_fast.step_(*arguments)
    arguments[0] = torch.ones(1, 18, dtype=torch.int64)  # fold and batch 1, one mode, ..
    arguments[2] = torch.full((3, 3), 100)  # .. of size 100
    with pytest.raises(RuntimeError, match="tensor 0 does not fit in a workspace of 8 elements"):
        torch.ops.soap_fast.step_(*arguments)


def test_a_state_that_the_user_has_cast_is_refused_and_not_read():
    for name, dtype in (("exp_avg_sq", torch.bfloat16), ("step", torch.int64)):
        params = parameters(((6, 4), (5,)))
        optimizer = SOAP(params, backend="native")
        train(optimizer, params, range(2))
        entry = optimizer.state[params[0]]
        entry[name] = entry[name].to(dtype)
        with pytest.raises(ValueError, match=f"parameter 0 of group 0 has a {name} of {dtype}"):
            train(optimizer, params, [2])


@pytest.mark.parametrize("place", ["_stack", "_move"])
def test_an_interrupted_step_leaves_no_old_addresses(monkeypatch, place):
    (eager, params), (native, others) = twins(((6, 4), (5,)))
    train(native, others, [2])
    train(eager, params, [2])
    if place == "_stack":
        native._backend.forget()  # the whole way
    set_gradients(others, 3)

    def interrupts(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CpuStep, place, interrupts)
    with pytest.raises(KeyboardInterrupt):
        native.step()
    monkeypatch.undo()
    native.step()
    train(eager, params, [3])
    assert_same_step(eager, params, native, others)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_gradient_with_the_negative_bit_is_read_as_what_it_stands_for(backend):
    ends = []
    for lazily in (False, True):
        params = parameters(((5, 5),))
        optimizer = SOAP(params, backend=backend)
        for call in range(3):
            set_gradients(params, call)
            grad = params[0].grad
            if lazily:
                grad = torch.complex(torch.zeros_like(grad), -grad).conj().imag
                assert grad.is_neg()
            params[0].grad = grad
            optimizer.step()
        ends.append(params[0].detach().clone())
    torch.testing.assert_close(*ends, **tolerances.PLAIN)


def test_an_empty_group_is_scheduled_like_the_others():
    params = parameters(((6, 4),))
    optimizer = SOAP([{"params": params}, {"params": []}])
    for call in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (call + 1)
        train(optimizer, params, [call])
