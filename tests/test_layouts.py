"""Checkpoints of other SOAPs: read and gone on with as they would have, and written for them."""

from __future__ import annotations

import golden
import pytest
import pytorch_optimizer
import tolerances
import torch
from streams import ON_CPU, assert_same_bits, parameters, through_a_file, train

from soap_fast import SOAP

FULL_RANK = ((8, 8), (4, 4, 4), (6, 6, 3, 3))


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
            assert error <= tolerances.TRACE, f"call {call}, parameter {i}: {error:.1e}"


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_reference_checkpoint_goes_on_on_every_backend(backend):
    """Of one case the tensors that are quick to interpret; the second call refreshes."""
    trace = golden.load("freq3_lic")
    few = [i for i, p in enumerate(trace.init) if p.numel() <= 64]
    saved = reference_state_dict(trace, 11)
    saved["state"] = {place: saved["state"][i] for place, i in enumerate(few)}
    saved["param_groups"][0]["params"] = list(range(len(few)))
    params = [torch.nn.Parameter(trace.params[10][i].clone()) for i in few]
    optimizer = SOAP(params, backend=backend)
    optimizer.load_state_dict(through_a_file(saved))
    for call in range(12, 15):
        for param, i in zip(params, few, strict=True):
            param.grad = trace.grads[call - 1][i]
        optimizer.step()
    for param, i in zip(params, few, strict=True):
        expected, start = trace.params[13][i], trace.params[10][i]
        assert (param - expected).abs().max() <= tolerances.TRACE * (expected - start).abs().max()


# Sizes of the reference's factors per mode, those of size 1 included, 0 for none.
EXPORTED = {
    "": [[8, 8], [4, 4, 4], [6, 6, 3, 3], [0], [4, 1, 4], [1, 1], []],
    "precondition_1d": [[8, 8], [4, 4, 4], [6, 6, 3, 3], [5], [4, 1, 4], [1, 1], []],
    "max_precond_dim": [[0, 0], [4, 4, 4], [0, 0, 3, 3], [0], [4, 1, 4], [1, 1], []],
    "merge_dims": [[64], [64], [324], [0], [16], [1], [1]],
}


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
            assert isinstance(k, torch.Tensor) or k == q == []
            if len(k):
                trace = (1 - 0.95) * param.grad.square().sum()  # at least the last gradient's share
                assert k.trace() >= 0.9 * trace
                assert (q.T @ q - torch.eye(len(q))).abs().max() <= tolerances.ORTHOGONAL
    assert "data_format" not in exported["param_groups"][0]
    sizes = [[len(q) for q in entry["Q"]] for entry in exported["state"].values()]
    assert sizes == EXPORTED[next(iter(options), "")]

    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed)
    other.load_state_dict(exported)
    expected = optimizer.state_dict()
    for entry in expected["state"].values():  # the reference does not count its refreshes
        entry["refreshes"].zero_()
        entry["off_diagonal"].fill_(torch.nan)
    assert_same_bits(other.state_dict(), expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_state_of_every_backend_is_exported_and_comes_back(backend):
    """A tensor whose moments Triton keeps in another order, and a mode of size 1."""
    params = parameters(((2, 3, 3, 3), (3, 1)))
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    train(optimizer, params, range(3))
    exported = through_a_file(optimizer.state_dict(layout="reference"))
    assert [entry["step"] for entry in exported["state"].values()] == [2, 2]
    values = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(values, backend=backend)
    other.load_state_dict(exported)
    expected = optimizer.state_dict()
    for entry in expected["state"].values():
        entry["refreshes"].zero_()
        entry["off_diagonal"].fill_(torch.nan)
    assert_same_bits(other.state_dict(), expected)
    train(optimizer, params, range(3, 5))
    train(other, values, range(3, 5))
    assert_same_bits([p.detach() for p in values], [p.detach() for p in params])


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_checkpoint_of_pytorch_optimizer_goes_on_as_it_did(backend):
    """Its exp_avg is not rotated and its clock counts per group."""
    interpreted = backend == "triton"
    shapes = ((4, 4), (5,), (4, 1, 4)) if interpreted else (*FULL_RANK, (5,), (4, 1, 4))
    end = 11 if interpreted else 20  # the tenth call refreshes
    theirs = parameters(shapes)
    public = pytorch_optimizer.SOAP(theirs, precondition_frequency=3, weight_decay=0.1)
    train(public, theirs, range(8))
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = SOAP(ours, backend=backend)
    optimizer.load_state_dict(through_a_file(public.state_dict()))
    assert optimizer.param_groups[0]["precondition_frequency"] == 3
    assert "step" not in optimizer.param_groups[0]
    start = [p.detach().clone() for p in ours]
    train(public, theirs, range(8, end))
    train(optimizer, ours, range(8, end))
    for p, q, before in zip(ours, theirs, start, strict=True):
        error = (p - q).abs().max() / (q - before).abs().max()
        assert error <= tolerances.TRACE


DAMAGE = {
    "cut": lambda entry: {**entry, "exp_avg": entry["exp_avg"][:-1]},
    "none": lambda entry: {**entry, "exp_avg": None},
    "integers": lambda entry: {**entry, "exp_avg": entry["exp_avg"].int()},
    "no second moment": lambda entry: {**entry, "exp_avg_sq": None},
    "a basis of integers": lambda entry: {**entry, "Q": [q.int() for q in entry["Q"]]},
    "a basis of less": lambda entry: {**entry, "Q": [q[:-1] for q in entry["Q"]]},
    "a factor of less": lambda entry: {**entry, "GG": [k[:, :-1] for k in entry["GG"]]},
    "modes": lambda entry: {**entry, "GG": entry["GG"][:1]},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("whose", ["reference", "pytorch_optimizer"])
def test_a_damaged_checkpoint_of_others_changes_nothing(whose, damage):
    params = parameters(((4, 3), (3, 1)))
    if whose == "reference":
        saved_by = SOAP(params)
        train(saved_by, params, range(3))
        saved = saved_by.state_dict(layout="reference")
    else:
        public = pytorch_optimizer.SOAP(params)
        train(public, params, range(3))
        saved = public.state_dict()
    saved["state"][0] = DAMAGE[damage](saved["state"][0])
    optimizer = SOAP(params)
    train(optimizer, params, range(2))
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="the state_dict does not fit: parameter 0: "):
        optimizer.load_state_dict(saved)
    assert_same_bits(optimizer.state_dict(), before)
