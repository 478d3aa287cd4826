"""Saving and loading: exact, and refused whole if it does not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from streams import (
    assert_same_bits,
    parameters,
    set_gradients,
    snapshot,
    through_a_file,
    train,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from soap_fast import SOAP
from soap_fast.checkpoint import ours as checkpoint
from soap_fast.checkpoint.ours import write
from soap_fast.step.state import restack


def stepped(calls=5, **options):
    params = parameters()
    optimizer = SOAP(params, precondition_frequency=2, **options)
    train(optimizer, params, range(calls))
    return params, optimizer


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_resuming_from_a_file_is_bit_exact(calls):
    params, optimizer = stepped(calls)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed, lr=1.0)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    train(optimizer, params, range(calls, calls + 6))
    train(other, resumed, range(calls, calls + 6))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)


def test_a_state_dict_is_a_snapshot_to_roll_back_to():
    params, optimizer = stepped()
    values, saved = [p.detach().clone() for p in params], optimizer.state_dict()
    kept = copy.deepcopy(saved)
    train(optimizer, params, range(5, 11))
    assert_same_bits(saved, kept)
    reached = [p.detach().clone() for p in params]
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(5, 11))
    for param, value in zip(params, reached, strict=True):
        assert torch.equal(param, value)


def test_a_first_gradient_left_out_is_remembered():
    params = parameters()
    optimizer = SOAP(params)
    set_gradients(params, 0)
    params[0].grad.fill_(float("nan"))
    optimizer.step()
    other = SOAP(parameters())
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert list(other.stats()["skipped"].values()) == [1, 0, 0, 0, 0]
    assert 0 not in optimizer.state_dict(layout="reference")["state"]


def test_a_loaded_tensor_lr_is_a_copy():
    optimizer, other = SOAP(parameters(), lr=torch.tensor(0.1)), SOAP(parameters())
    other.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"].fill_(5.0)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)


def test_loading_copies_and_later_steps_leave_the_saved_tensors_alone():
    params, optimizer = stepped()
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved["state"][0])
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed)
    other.load_state_dict(saved)
    train(other, resumed, range(5, 9))
    assert_same_bits(saved["state"][0], kept)


def test_saved_tensors_are_contiguous_and_bring_no_stack_along():
    params, optimizer = stepped()
    factors = 0
    for entry in optimizer.state_dict()["state"].values():
        tensors = [v for v in entry.values() if isinstance(v, torch.Tensor)]
        tensors += [*entry["GG"].values(), *entry["Q"].values()]
        factors += len(tensors)
        for tensor in tensors:
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert factors > len(params) * 4


def test_a_state_on_a_device_is_saved_into_the_hosts_memory():
    """A GPU need not hold it twice. Tensors without data stand for a GPU's here."""
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(4, 3, device="cuda"))
        entry = {"calls": 1, "exp_avg": weight.detach().t(), "Q": [weight.detach(), None]}
        rate = torch.empty((), device="cuda")
        saved = write({weight: entry}, [{"params": [weight], "lr": rate}], "soap_fast")
        found = saved["state"][0]
        assert found["exp_avg"].device.type == found["Q"][0].device.type == "cpu"
        assert found["exp_avg"].is_contiguous()
        assert saved["param_groups"][0]["lr"].device.type == "cuda"  # a graph may read it there


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_is_read_onto_the_device_of_its_parameter(dtype, monkeypatch):
    """As float32, contiguous, whatever it was saved as. Tensors without data stand for a GPU's."""
    params, optimizer = stepped(refresh_schedule="staggered")
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = entry[name].double()
        for name in ("GG", "Q"):
            entry[name] = {mode: m.half().T for mode, m in entry[name].items()}
    monkeypatch.setattr(checkpoint, "_checked", lambda entry, plan: entry)  # it reads values
    with FakeTensorMode(allow_non_fake_inputs=True):
        far = [torch.nn.Parameter(torch.empty(p.shape, dtype=dtype, device="cuda")) for p in params]
        groups, state = checkpoint.read(saved, [{**optimizer.param_groups[0], "params": far}])
        assert groups[0]["params"] == far
        assert list(state) == far
        for entry in state.values():
            assert isinstance(entry["calls"], int)
            tensors = {name: t for name, t in entry.items() if isinstance(t, torch.Tensor)}
            assert len(tensors) == 6
            assert all(t.device.type == "cuda" and t.is_contiguous() for t in tensors.values())
            kinds = {name: t.dtype for name, t in tensors.items()}
            assert kinds.pop("skipped") == kinds.pop("refreshes") == torch.int64
            assert set(kinds.values()) == {torch.float32}
        stacks = restack(state)  # what factors end up in
        assert sum(len(stack.owners) for stack in stacks.values()) == 8
        for stack in stacks.values():
            for factors in (stack.K, stack.Q):
                assert factors.device.type == "cuda"
                assert factors.dtype == torch.float32
                assert factors.is_contiguous()


def test_state_stays_float32_for_bfloat16_parameters():
    params = parameters(dtype=torch.bfloat16)
    optimizer = SOAP(params, precondition_frequency=2)
    train(optimizer, params, range(5))
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed, precondition_frequency=2)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    train(optimizer, params, range(5, 9))
    train(other, resumed, range(5, 9))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)


def test_options_missing_in_a_checkpoint_keep_the_optimizers_own():
    params, optimizer = stepped(weight_decay=0.2)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["normalize_grads"]
    saved["param_groups"][0]["initial_lr"] = 0.5  # as schedulers write it
    other = SOAP(parameters(), normalize_grads=True)
    other.load_state_dict(saved)
    assert other.param_groups[0]["normalize_grads"] is True
    assert other.param_groups[0]["weight_decay"] == 0.2
    assert other.param_groups[0]["initial_lr"] == 0.5
    assert params


def test_hooks_run_in_order_and_may_replace_the_state_dict():
    params, optimizer = stepped()
    heard = []
    other = SOAP([torch.nn.Parameter(p.detach().clone()) for p in params])

    def strip_prefix(_, state_dict):
        heard.append("pre")
        return {**state_dict, "state": {int(k[1:]): v for k, v in state_dict["state"].items()}}

    other.register_load_state_dict_pre_hook(strip_prefix)
    other.register_load_state_dict_post_hook(lambda _: heard.append("post"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {"wrapped": saved})
    assert set(optimizer.state_dict()) == {"wrapped"}
    optimizer._optimizer_state_dict_post_hooks.clear()
    saved = optimizer.state_dict()
    renamed = {**saved, "state": {f"p{k}": v for k, v in saved["state"].items()}}
    other.load_state_dict(renamed)
    assert heard == ["pre", "post"]
    assert_same_bits(other.state_dict(), saved)


def damaged(saved: dict, where: str) -> dict:
    saved = copy.deepcopy(saved)
    entry = saved["state"][1]
    match where:
        case "no state":
            del saved["state"]
        case "no groups":
            del saved["param_groups"]
        case "fewer parameters":
            saved["param_groups"][0]["params"].pop()
        case "another group":
            saved["param_groups"].append(saved["param_groups"][0])
        case "stranger":
            saved["state"][77] = entry
        case "missing key":
            del entry["exp_avg_sq"]
        case "missing factors":
            del entry["GG"]
        case "shape of a moment":
            entry["exp_avg"] = entry["exp_avg"][:3]
        case "shape of a factor":
            entry["Q"][0] = entry["Q"][0][:, :-1]
        case "number of modes":
            entry["GG"] = list(entry["GG"].values())[:-1]
        case "a mode too many":
            entry["GG"][4] = entry["GG"][0]
        case "absent factor":
            entry["GG"][0] = None
        case "clock":
            entry["calls"] = -3
        case "step":
            entry["step"] = "seven"
        case "option":
            saved["param_groups"][0]["betas"] = (0.9, 1.5)
        case "nan":
            entry["exp_avg"][0, 0, 0, 0] = torch.nan
        case "negative squares":
            entry["exp_avg_sq"].neg_()
        case "sparse":
            entry["exp_avg"] = entry["exp_avg"].to_sparse()
        case "integers":
            entry["exp_avg"] = entry["exp_avg"].long()
        case "no list":
            entry["GG"] = None
        case "no entry":
            saved["state"][1] = [1, 2]
        case "no dict of states":
            saved["state"] = [entry]
        case "no list of groups":
            saved["param_groups"] = None
        case "step past calls":
            entry["step"] = torch.tensor(99.0)
        case "step not a number":
            entry["step"] = torch.tensor(torch.nan)
        case "bool calls":
            entry["calls"] = True
        case "other options":
            saved["param_groups"][0]["max_precond_dim"] = 3
    return saved


DAMAGE = {
    "no state": "has no 'state'",
    "no groups": "has no 'param_groups'",
    "fewer parameters": r"groups of \[4\] parameters, this optimizer of \[5\]",
    "another group": r"groups of \[5, 5\]",
    "stranger": "77",
    "missing key": r"parameter 1: its entry has no \['exp_avg_sq'\]",
    "missing factors": "GG",
    "shape of a moment": r"exp_avg is \(3, 4, 3, 3\), not of shape \(6, 4, 3, 3\)",
    "shape of a factor": r"Q\[0\] is \(6, 5\)",
    "number of modes": "GG has 3 modes",
    "a mode too many": r"GG has a mode 4, the parameter 4 modes",
    "absent factor": r"GG\[0\] is None",
    "clock": "calls=-3",
    "step": "step='seven'",
    "option": r"betas\[1\]=1.5",
    "nan": "exp_avg has NaN or inf",
    "negative squares": "exp_avg_sq has negative entries",
    "sparse": "exp_avg is not a dense floating point tensor",
    "integers": "exp_avg is not a dense floating point tensor",
    "no list": "GG is a NoneType, not a list",
    "no entry": "its entry is a list",
    "no dict of states": "its 'state' is a list",
    "no list of groups": "its 'param_groups' is a NoneType",
    "step past calls": r"step=99.0 is outside \[0, 4\]",
    "step not a number": "step=nan",
    "bool calls": "calls=True",
    "other options": "use the max_precond_dim",
}


@pytest.mark.parametrize("where", DAMAGE)
def test_a_checkpoint_that_does_not_fit_changes_nothing(where):
    _, optimizer = stepped()
    saved = damaged(optimizer.state_dict(), where)
    params, other = stepped(3)
    before = snapshot(other, params)
    with pytest.raises(ValueError, match=DAMAGE[where]):
        other.load_state_dict(saved)
    assert_same_bits(snapshot(other, params), before)
    train(other, params, range(3, 5))


def test_a_checkpoint_of_other_shapes_is_refused():
    _, optimizer = stepped()
    other = SOAP(parameters(((8, 8), (6, 4, 3, 5), (5,), (4, 1, 4), ())))
    with pytest.raises(ValueError, match="parameter 1: exp_avg is"):
        other.load_state_dict(optimizer.state_dict())


def test_the_name_of_a_parameter_is_in_the_refusal():
    layer = torch.nn.Linear(4, 3)
    saved = SOAP(layer.named_parameters()).state_dict()
    saved["state"][0] = {"calls": 2}
    with pytest.raises(ValueError, match="weight: its entry has no"):
        SOAP(layer.named_parameters()).load_state_dict(saved)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_adam_checkpoint_is_refused_with_the_way_out(kind):
    params = parameters()
    adam = kind(params)
    train(adam, params, range(2))
    optimizer = SOAP(params)
    with pytest.raises(ValueError, match=r"one of Adam.*load the model's weights, build SOAP"):
        optimizer.load_state_dict(adam.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
def test_another_optimizers_checkpoint_is_refused(kind, calls):
    params = parameters()
    another = kind(params, lr=0.5)
    train(another, params, range(calls))
    optimizer = SOAP(params)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match="load the model's weights, build SOAP"):
        optimizer.load_state_dict(another.state_dict())
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("given", [None, [], "state"])
def test_what_is_no_state_dict_is_refused(given):
    with pytest.raises(ValueError, match="a state_dict is a dict"):
        SOAP(parameters()).load_state_dict(given)


def test_an_unknown_layout_is_refused():
    params, optimizer = stepped(2)
    with pytest.raises(ValueError, match="layout='torch'"):
        optimizer.state_dict(layout="torch")
    set_gradients(params, 2)
    optimizer.step()
