"""Saving and loading: exact, also in others' layouts, and refused whole if it does not fit."""

from __future__ import annotations

import copy
import io

import golden
import pytest
import pytorch_optimizer
import torch
from streams import assert_same_bits, parameters, set_gradients, snapshot, train

from soap_fast import SOAP

FULL_RANK = ((8, 8), (4, 4, 4), (6, 6, 3, 3))


def through_a_file(state_dict: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


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
        tensors += [m for m in entry["GG"] + entry["Q"] if m is not None]
        factors += len(tensors)
        for tensor in tensors:
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert factors > len(params) * 4


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
    saved = optimizer.state_dict()
    renamed = {**saved, "state": {f"p{k}": v for k, v in saved["state"].items()}}
    other.load_state_dict(renamed)
    assert heard == ["pre", "post"]
    assert_same_bits(other.state_dict(), saved)


# ------------------------------------------------------------------------------- other layouts


def reference_state_dict(trace: golden.Trace, call: int) -> dict:
    """What the reference itself would have saved after this call of a recorded run."""
    modes = [max([*state["GG"], 0]) + 1 for state in trace.states[call]]  # absent ones are inner
    state = {
        i: {
            "step": recorded["step"],
            "exp_avg": recorded["exp_avg"],
            "exp_avg_sq": recorded["exp_avg_sq"],
            "GG": [recorded["GG"].get(mode, []) for mode in range(modes[i])],
            "Q": [recorded["Q"].get(mode, []) for mode in range(modes[i])],
            "precondition_frequency": trace.kwargs.get("precondition_frequency", 10),
            "shampoo_beta": 0.95,
        }
        for i, recorded in enumerate(trace.states[call])
    }
    group = {
        "lr": 3e-3,
        "betas": (0.95, 0.95),
        "shampoo_beta": -1,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "precondition_frequency": 10,
        "max_precond_dim": 10000,
        "merge_dims": False,
        "precondition_1d": False,
        "normalize_grads": False,
        "correct_bias": True,
        **{key: value for key, value in trace.kwargs.items() if key != "data_format"},
        "params": list(range(len(state))),
    }
    return {"state": state, "param_groups": [group]}


def flip_unit_bases(state_dict: dict) -> dict:
    """The same state, had the solver returned -1 as the eigenvector of a 1 x 1 factor."""
    for entry in state_dict["state"].values():
        for mode, q in enumerate(entry["Q"]):
            if len(q) == 1:
                entry["Q"][mode] = -q
                entry["exp_avg"] = -entry["exp_avg"]
    return state_dict


@pytest.mark.parametrize("flip", [False, True], ids=["", "unit bases flipped"])
@pytest.mark.parametrize("case", golden.CASES)
def test_a_reference_checkpoint_goes_on_as_the_reference_did(case, flip):
    trace = golden.load(case)
    saved = reference_state_dict(trace, 11)
    saved = flip_unit_bases(saved) if flip else saved
    params = [torch.nn.Parameter(p.clone()) for p in trace.params[10]]
    data_format = trace.kwargs.get("data_format", "channels_first")
    optimizer = SOAP(params, data_format=data_format)
    optimizer.load_state_dict(through_a_file(saved))
    for call in range(12, len(trace.grads) + 1):
        for param, grad in zip(params, trace.grads[call - 1], strict=True):
            param.grad = grad
        optimizer.step()
        for i, param in enumerate(params):
            expected = trace.params[call - 1][i]
            moved = (expected - trace.params[10][i]).abs().max()
            error = (param - expected).abs().max() / moved
            assert error <= golden.TOLERANCE, f"call {call}, parameter {i}: {error:.1e}"


@pytest.mark.parametrize(
    "options",
    [{}, {"precondition_1d": True}, {"max_precond_dim": 5}, {"merge_dims": True}],
    ids=lambda options: ",".join(options) or "default",
)
def test_export_to_the_reference_and_back(options):
    params = parameters((*FULL_RANK, (5,), (4, 1, 4), (1, 1), ()))
    optimizer = SOAP(params, precondition_frequency=3, **options)
    train(optimizer, params, range(5))
    exported = through_a_file(optimizer.state_dict(layout="reference"))
    for entry, param in zip(exported["state"].values(), params, strict=True):
        assert entry["step"] == 4
        assert isinstance(entry["step"], int)
        for k, q in zip(entry["GG"], entry["Q"], strict=True):
            assert len(k) == len(q)
            if len(k):
                trace = (1 - 0.95) * param.grad.square().sum()  # at least the last gradient's share
                assert k.trace() >= 0.9 * trace
                assert torch.allclose(q.T @ q, torch.eye(len(q)), atol=1e-5)
    assert "data_format" not in exported["param_groups"][0]

    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed)
    other.load_state_dict(exported)
    assert_same_bits(other.state_dict(), optimizer.state_dict())


def test_a_checkpoint_of_pytorch_optimizer_goes_on_as_it_did():
    """Its exp_avg is not rotated and its clock counts per group."""
    shapes = (*FULL_RANK, (5,), (4, 1, 4))
    theirs = parameters(shapes)
    public = pytorch_optimizer.SOAP(theirs, precondition_frequency=3, weight_decay=0.1)
    train(public, theirs, range(8))
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = SOAP(ours)
    optimizer.load_state_dict(through_a_file(public.state_dict()))
    assert optimizer.param_groups[0]["precondition_frequency"] == 3
    assert "step" not in optimizer.param_groups[0]
    start = [p.detach().clone() for p in ours]
    train(public, theirs, range(8, 20))
    train(optimizer, ours, range(8, 20))
    for p, q, before in zip(ours, theirs, start, strict=True):
        error = (p - q).abs().max() / (q - before).abs().max()
        assert error <= golden.TOLERANCE


# ------------------------------------------------------------------------------------ refusals


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
            entry["GG"].pop()
        case "absent factor":
            entry["GG"][0] = None
        case "clock":
            entry["calls"] = -3
        case "step":
            entry["step"] = "seven"
        case "option":
            saved["param_groups"][0]["betas"] = (0.9, 1.5)
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
    "absent factor": r"GG\[0\] is None",
    "clock": "calls=-3",
    "step": "step='seven'",
    "option": r"betas\[1\]=1.5",
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


def test_another_optimizers_checkpoint_is_refused():
    params = parameters()
    sgd = torch.optim.SGD(params, momentum=0.9)
    train(sgd, params, range(2))
    with pytest.raises(ValueError, match="not one of a known SOAP"):
        SOAP(params).load_state_dict(sgd.state_dict())


def test_an_unknown_layout_is_refused():
    params, optimizer = stepped(2)
    with pytest.raises(ValueError, match="layout='torch'"):
        optimizer.state_dict(layout="torch")
    set_gradients(params, 2)
    optimizer.step()
