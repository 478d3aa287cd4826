"""Every invalid argument, dtype and layout: a clear error, before anything was written."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from streams import assert_same_bits, parameters, set_gradients, snapshot, train

from soap_fast import SOAP

BAD_OPTIONS = [
    ("lr", -1e-3, r"lr=-0.001 is not a finite number >= 0"),
    ("lr", math.nan, "lr=nan"),
    ("lr", "3e-3", "lr='3e-3'"),
    ("lr", torch.ones(2), "a dense floating point tensor of one element"),
    ("lr", torch.tensor(1), "a dense floating point tensor"),
    ("lr", torch.tensor(-0.1), "finite and >= 0"),
    ("lr", torch.tensor(math.nan), "finite and >= 0"),
    ("lr", torch.tensor(0.1, device="meta"), "a dense floating point tensor"),
    ("lr", torch.tensor([0.1]).to_sparse(), "a dense floating point tensor"),
    ("betas", (0.9,), "a pair of numbers"),
    ("betas", 0.9, "a pair of numbers"),
    ("betas", (1.0, 0.9), r"betas\[0\]=1.0 is not inside \[0, 1\)"),
    ("betas", (0.9, -0.1), r"betas\[1\]=-0.1"),
    ("shampoo_beta", 1.0, "shampoo_beta=1.0 is not below 1"),
    ("shampoo_beta", None, "a negative value takes"),
    ("eps", -1e-8, "eps=-1e-08"),
    ("eps", math.inf, "eps=inf"),
    ("weight_decay", -0.1, "weight_decay=-0.1"),
    ("precondition_frequency", 0, "precondition_frequency=0 is not an integer >= 1"),
    ("precondition_frequency", 2.5, "precondition_frequency=2.5"),
    ("precondition_frequency", True, "precondition_frequency=True"),
    ("max_precond_dim", -1, "max_precond_dim=-1"),
    ("merge_dims", 1, "merge_dims=1 is not True or False"),
    ("precondition_1d", None, "precondition_1d=None"),
    ("normalize_grads", "yes", "normalize_grads='yes'"),
    ("data_format", "NHWC", "data_format='NHWC' is not one of"),
    ("correct_bias", 0, "correct_bias=0"),
    ("refresh_tolerance", 1.0, r"refresh_tolerance=1.0 is not inside \[0, 1\)"),
    ("refresh_tolerance", -0.1, "refresh_tolerance=-0.1"),
    ("noise_floor", -1.0, "noise_floor=-1.0 is not a finite number >= 0"),
    ("noise_floor", math.inf, "noise_floor=inf"),
    ("refresh_schedule", "random", "refresh_schedule='random' is not one of"),
]
IDS = [f"{name}={value!r}" for name, value, _ in BAD_OPTIONS]


@pytest.mark.parametrize(("name", "value", "message"), BAD_OPTIONS, ids=IDS)
class TestOptions:
    def test_in_the_constructor(self, name, value, message):
        with pytest.raises(ValueError, match=message):
            SOAP(parameters(), **{name: value})

    def test_in_a_group_added_later(self, name, value, message):
        params = parameters()
        optimizer = SOAP(params)
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": parameters(((2, 2),)), name: value})
        assert len(optimizer.param_groups) == 1
        train(optimizer, params, range(2))

    def test_written_into_param_groups(self, name, value, message):
        params = parameters()
        optimizer = SOAP(params)
        optimizer.add_param_group({"params": (late := parameters(((3, 3),)))})
        params += late
        train(optimizer, params, range(3))
        good = optimizer.param_groups[1][name]
        optimizer.param_groups[1][name] = value
        set_gradients(params, 3)
        before = [p.detach().clone() for p in params]
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        for param, value_before in zip(params, before, strict=True):
            assert torch.equal(param, value_before)
        optimizer.param_groups[1][name] = good
        optimizer.step()


def test_an_unknown_backend():
    with pytest.raises(
        ValueError, match=r"backend='cuda' is not one of \['triton', 'native', 'eager'\]"
    ):
        SOAP(parameters(), backend="cuda")


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), "5 of group 0 is complex .*view_as_real"),
        (torch.zeros(3, 3).to_sparse(), "has layout torch.sparse_coo.*SparseAdam"),
        (torch.zeros(3, 3, device="meta"), "is on the meta device.*to_empty"),
        (torch.zeros(3, 3).to(torch.float8_e4m3fn), "has dtype torch.float8_e4m3fn"),
        (torch.zeros(3).expand(4, 3), r"has strides \(0, 1\) .*share memory.*clone"),
        (torch.zeros(9).as_strided((3, 3), (2, 1)), r"has strides \(2, 1\) .*share memory"),
        (torch._neg_view(torch.zeros(3, 3)), "is a negated view.*resolve_neg"),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, "is a negated view.*resolve_neg"),
    ],
    ids=["complex", "sparse", "meta", "float8", "expanded", "overlapping", "negated", "imaginary"],
)
def test_parameters_that_cannot_be_stepped(param, message):
    param = torch.nn.Parameter(param)
    with pytest.raises(ValueError, match=message):
        SOAP([*parameters(), param])
    optimizer = SOAP(parameters())
    with pytest.raises(ValueError, match=message.replace("5 of group 0", "0 of group 1")):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


def resized(param, _):
    param.data = torch.zeros(6, 3)
    param.grad = torch.zeros(6, 3)


def cast(param, _):
    param.data = param.data.double()
    param.grad = torch.zeros_like(param)


def sparse_gradient(param, _):
    param.grad = torch.zeros_like(param).to_sparse()


def integer_gradient(param, _):
    param.grad_dtype = None  # torch holds gradients to the parameter's dtype unless told otherwise
    param.grad = torch.zeros(param.shape, dtype=torch.int32)


def shrunk_behind_its_gradient(param, _):
    param.data = torch.zeros(2, 3)


def state_left_behind(param, optimizer):
    entry = optimizer.state[param]
    entry["exp_avg"] = entry["exp_avg"].to("meta")  # the only other device there is everywhere


def expanded(param, _):
    param.data = torch.zeros(3).expand(4, 3)


def negated(param, _):
    param.data = torch._neg_view(param.data)


def freed(param, _):
    param.untyped_storage().resize_(0)


def with_a_freed_gradient(param, _):
    param.grad.untyped_storage().resize_(0)


def part_of_freed_memory(param, _):
    whole = torch.zeros(5, 3)
    param.data = whole[1:]
    whole.untyped_storage().resize_(0)


BREAKAGE = {
    "negated": (negated, "parameter 'late' is a negated view"),
    "freed": (freed, r"parameter 'late' is \[4, 3\] but has no memory.*FSDP1"),
    "part": (part_of_freed_memory, r"parameter 'late' is \[4, 3\] but has no memory"),
    "gradient": (with_a_freed_gradient, "parameter 'late' has a gradient without memory"),
    "integer": (integer_gradient, "parameter 'late' has a gradient of dtype torch.int32"),
    "shrunk": (shrunk_behind_its_gradient, r"parameter 'late' is \[2, 3\].*its gradient \[4, 3\]"),
    "moved": (state_left_behind, "parameter 'late' is on cpu, its state on meta"),
    "expanded": (expanded, "parameter 'late' has strides"),
    "sparse": (sparse_gradient, "parameter 'late' has a gradient of layout torch.sparse_coo"),
    "resized": (resized, r"parameter 'late' is \[6, 3\] but was \[4, 3\] at its first call"),
    "cast": (cast, "parameter 'late' is torch.float64 now, its state torch.float32"),
}


@pytest.mark.parametrize("kind", BREAKAGE)
def test_a_tensor_that_cannot_step_stops_the_step_before_any_other_has(kind):
    break_it, message = BREAKAGE[kind]
    early, late = parameters(((5, 5), (4, 3)))
    optimizer = SOAP([("early", early), ("late", late)])
    train(optimizer, [early, late], range(3))  # the next one could be a steady one
    set_gradients([early, late], 3)
    before = early.detach().clone(), copy.deepcopy(optimizer.state[early])
    break_it(late, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert_same_bits((early.detach(), optimizer.state[early]), before)


@pytest.mark.parametrize("option", [{"max_precond_dim": 3}, {"merge_dims": True}])
def test_options_that_decide_factors_cannot_change_under_a_state(option):
    params = parameters(((5, 5), (2, 2, 2)))
    optimizer = SOAP(params)
    train(optimizer, params, range(2))
    before = snapshot(optimizer, params)[0]
    optimizer.param_groups[0].update(option)
    set_gradients(params, 2)
    with pytest.raises(ValueError, match="cannot change after a parameter's first call"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer, params)[0], before)


def test_a_failure_during_first_bases_starts_nothing(monkeypatch):
    params = parameters()
    optimizer = SOAP(params, backend="eager")

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("soap_fast.backends.eager.eigh_eager", out_of_memory)
    set_gradients(params, 0)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert not optimizer.state
    monkeypatch.undo()
    train(optimizer, params, range(3))


@pytest.mark.parametrize("station", ["rotate_back", "grams"])
def test_a_failure_during_an_update_leaves_its_tensor_whole(monkeypatch, station):
    params = parameters(((5, 5),))
    optimizer = SOAP(params, backend="eager")
    train(optimizer, params, range(3))
    before = snapshot(optimizer, params)

    def out_of_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(f"soap_fast.step.update.{station}", out_of_memory)
    set_gradients(params, 3)
    with pytest.raises(MemoryError):
        optimizer.step()
    monkeypatch.undo()
    assert_same_bits(snapshot(optimizer, params), before)
    optimizer.step()


@pytest.mark.parametrize("allocation", range(8))
def test_a_failure_while_writing_leaves_its_tensor_whole(monkeypatch, allocation):
    """Memory may run out at any of the tensors that a commit makes."""
    params = parameters(((5, 5),))
    optimizer = SOAP(params, backend="eager", precondition_frequency=1)
    train(optimizer, params, range(3))
    before = snapshot(optimizer, params)
    where, made = torch.where, []

    def where_until_memory_runs_out(*arguments, **options):
        made.append(arguments)
        if len(made) > allocation:
            raise MemoryError
        return where(*arguments, **options)

    monkeypatch.setattr(torch, "where", where_until_memory_runs_out)
    set_gradients(params, 3)
    with pytest.raises(MemoryError):
        optimizer.step()
    monkeypatch.undo()
    after = snapshot(optimizer, params)
    if allocation < 6:  # clock, two moments, parameter and two factors are one commit
        assert_same_bits(after, before)
    else:  # the update was complete, the refresh has changed nothing
        assert after[1]["state"][0]["calls"] == before[1]["state"][0]["calls"] + 1
        assert_same_bits(after[1]["state"][0]["Q"], before[1]["state"][0]["Q"])


def test_an_option_that_was_deleted_is_named():
    params = parameters()
    optimizer = SOAP(params)
    set_gradients(params, 0)
    del optimizer.param_groups[0]["eps"]
    with pytest.raises(ValueError, match=r"has lost \['eps'\]"):
        optimizer.step()
