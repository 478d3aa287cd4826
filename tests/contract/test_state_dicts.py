"""state_dict and load_state_dict as torch's optimizers have them, on every backend."""

from __future__ import annotations

import copy

import pytest
import torch
from streams import assert_same_bits, parameters, through_a_file
from subject import assert_equal, copies, device_of, follow, on_every_backend, started

from soap_fast import SOAP

SHAPES = ((3, 2), (3,))


@on_every_backend
def test_it_is_deterministic_and_of_the_layout_torch_has(backend):
    _, optimizer = started(backend, calls=2)
    _, again = started(backend, calls=2)
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert list(saved["state"]) == saved["param_groups"][0]["params"] == list(range(5))
    assert_same_bits(saved, optimizer.state_dict())
    assert_same_bits(saved, again.state_dict())
    assert [list(entry) for entry in saved["state"].values()] == [
        list(entry) for entry in again.state_dict()["state"].values()
    ]


@on_every_backend
@pytest.mark.parametrize("calls", [0, 1, 4])
def test_it_loads_into_a_fresh_optimizer_which_goes_on_bit_for_bit(backend, calls):
    params, optimizer = started(backend, ((2, 3, 2, 2), (3,), ()), calls=calls, lr=0.1)
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    follow(optimizer, params, range(calls, calls + 2))
    follow(other, resumed, range(calls, calls + 2))
    assert_equal(params, resumed)
    assert_same_bits(optimizer.state_dict(), other.state_dict())


@on_every_backend
def test_it_loads_into_an_optimizer_in_the_middle_of_its_own_steps(backend):
    """Nothing that a backend has prepared for the state it had is used for the one it gets."""
    params, optimizer = started(backend, SHAPES, calls=2)
    saved, start = optimizer.state_dict(), copies(params)
    follow(optimizer, params, range(2, 5))
    expected = copies(params)
    for param, old in zip(params, start, strict=True):
        param.data.copy_(old.data)
    optimizer.load_state_dict(saved)
    follow(optimizer, params, range(2, 5))
    assert_equal(params, expected)


@on_every_backend
def test_it_loads_by_name(backend):
    """As torch documents it: a hook brings what was saved into the order of the parameters."""
    params, _ = started(backend, SHAPES)
    names = ["weight", "bias"]
    optimizer = SOAP(zip(names, params, strict=True), backend=backend, precondition_frequency=2)
    follow(optimizer, params, range(3))
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"][0]["param_names"] == names

    resumed = copies(params)
    turned = [("bias", resumed[1]), ("weight", resumed[0])]
    other = SOAP(turned, backend=backend, precondition_frequency=2)

    def by_name(optimizer, state_dict):
        known = state_dict["param_groups"][0]
        key_of = dict(zip(known["param_names"], known["params"], strict=True))
        wanted = optimizer.param_groups[0]["param_names"]
        state = {i: state_dict["state"][key_of[name]] for i, name in enumerate(wanted)}
        group = {**known, "params": list(range(len(wanted))), "param_names": wanted}
        return {"state": state, "param_groups": [group]}

    other.register_load_state_dict_pre_hook(by_name)
    other.load_state_dict(saved)
    assert other.param_groups[0]["param_names"] == ["bias", "weight"]
    assert other.state[resumed[0]]["exp_avg"].shape == (3, 2)
    follow(optimizer, params, range(3, 5))
    follow(other, resumed, range(3, 5))
    assert_equal(params, resumed)


@on_every_backend
@pytest.mark.parametrize("named", ["both", "saved", "loading"])
def test_names_may_be_missing_on_either_side(backend, named):
    params, _ = started(backend, SHAPES)
    with_names = list(zip(["weight", "bias"], params, strict=True))
    optimizer = SOAP(with_names if named != "loading" else params, backend=backend)
    follow(optimizer, params, range(2))
    other = SOAP(with_names if named != "saved" else params, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["param_names"] == ["weight", "bias"]
    follow(other, params, [2])


@on_every_backend
def test_what_older_files_did_not_have_yet_gets_its_default(backend):
    params, optimizer = started(backend, SHAPES, calls=3, weight_decay=0.25)
    saved = copy.deepcopy(optimizer.state_dict())
    group = saved["param_groups"][0]
    for name in list(group):
        if name not in ("params", "lr", "weight_decay", "precondition_frequency"):
            del group[name]
    for entry in saved["state"].values():
        del entry["refreshes"], entry["off_diagonal"]
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(saved)
    assert other.param_groups[0]["weight_decay"] == 0.25
    assert other.param_groups[0]["betas"] == (0.95, 0.95)
    counted = other.stats()
    assert list(counted["refreshed"].values()) == [0, 0]
    assert all(x != x for x in counted["off_diagonal"]["parameter 0 of group 0"])
    follow(optimizer, params, range(3, 5))
    follow(other, resumed, range(3, 5))
    assert_equal(params, resumed)
    assert other.stats()["refreshed"]["parameter 0 of group 0"] > 0


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_is_not_cast_to_the_dtype_of_its_parameter(backend, dtype):
    """torch casts it, which would round moments and factors at every resume."""
    params, optimizer = started(backend, SHAPES, calls=3, dtype=dtype)
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed[0].dtype == dtype
    entry = other.state[resumed[0]]
    for tensor in (entry["exp_avg"], entry["exp_avg_sq"], *entry["GG"], *entry["Q"]):
        assert tensor.dtype == torch.float32
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    follow(optimizer, params, range(3, 5))
    follow(other, resumed, range(3, 5))
    assert_equal(params, resumed)


@on_every_backend
def test_a_scheduler_goes_on_from_what_was_saved(backend):
    params, optimizer = started(backend, SHAPES)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for call in range(3):
        follow(optimizer, params, [call])
        scheduler.step()
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    later = torch.optim.lr_scheduler.ExponentialLR(other, 0.5)
    later.load_state_dict(through_a_file(scheduler.state_dict()))
    assert other.param_groups[0]["lr"] == 3e-3 / 8
    for call in range(3, 5):
        for each, own, schedule in ((optimizer, params, scheduler), (other, resumed, later)):
            follow(each, own, [call])
            schedule.step()
    assert_equal(params, resumed)


@on_every_backend
def test_it_is_refused_whole_where_it_does_not_fit(backend):
    params, optimizer = started(backend, SHAPES, calls=3)
    others = [torch.nn.Parameter(p.data.to(device_of(backend))) for p in parameters(((2, 3), (3,)))]
    other = SOAP(others, backend=backend)
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg is \(3, 2\), not of shape"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, this optimizer of \[1\]"):
        SOAP(params[:1], backend=backend).load_state_dict(optimizer.state_dict())
