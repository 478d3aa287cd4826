"""Options as configurations give them: any pair for betas, numpy's numbers; kept as plain ones."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from streams import ON_CPU, assert_same_bits, parameters, set_gradients, through_a_file, train
from subject import assert_equal, on_every_backend, started
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from soap_fast import SOAP

SHAPES = ((4, 3), (3,))


class Listed(Sequence):
    """A sequence that is no list, as OmegaConf's ListConfig is."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.values[place]

    def __repr__(self):  # the names of cases: the same in every process that collects them
        return f"Listed{self.values}"


PAIRS = {
    "list": [0.875, 0.75],
    "sequence": Listed(0.875, 0.75),
    "array": np.array([0.875, 0.75]),
    "float32 array": np.array([0.875, 0.75], dtype=np.float32),
    "array of the standard library": array("d", [0.875, 0.75]),
    "tensor": torch.tensor([0.875, 0.75]),
    "numpy's numbers": (np.float64(0.875), np.float32(0.75)),
    "tensors": (torch.tensor(0.875), torch.tensor(0.75, dtype=torch.float64)),
    "arrays": [np.array(0.875), np.array(0.75)],
    "nested sequence": Listed(np.float32(0.875), torch.tensor(0.75)),
}
REALS = (np.float64, np.float32, np.float16, np.array, torch.tensor)
INTEGERS = (np.int64, np.uint8, np.array, torch.tensor)
VALUES = [
    *((name, 0.125, make) for make in REALS for name in ("shampoo_beta", "eps", "weight_decay")),
    *(("refresh_tolerance", 0.125, make) for make in REALS),
    *(("lr", 0.125, make) for make in REALS if make is not torch.tensor),
    *(("lr", 1, make) for make in INTEGERS if make is not torch.tensor),
    *((name, 3, m) for m in INTEGERS for name in ("precondition_frequency", "max_precond_dim")),
    *((name, True, make) for make in (np.bool_, np.array) for name in ("merge_dims",)),
    *((name, False, np.bool_) for name in ("precondition_1d", "normalize_grads", "correct_bias")),
    ("data_format", "channels_last", np.str_),
]


def is_plain(value) -> bool:
    if type(value) is tuple:
        return all(map(is_plain, value))
    return type(value) in (float, int, bool, str)


def assert_plain(optimizer) -> None:
    for options in (optimizer.defaults, *optimizer.param_groups):
        kept = {k: v for k, v in options.items() if k not in ("params", "param_names")}
        assert all(map(is_plain, kept.values())), kept


@pytest.mark.parametrize("where", ["constructor", "group"])
@pytest.mark.parametrize("kind", PAIRS)
def test_betas_are_any_pair(kind, where):
    given = PAIRS[kind]
    if where == "constructor":
        optimizer = SOAP(parameters(SHAPES), betas=given)
    else:
        optimizer = SOAP([{"params": parameters(SHAPES), "betas": given}])
    assert optimizer.param_groups[0]["betas"] == (0.875, 0.75)
    assert_plain(optimizer)
    through_a_file(optimizer.state_dict())


@pytest.mark.parametrize("where", ["constructor", "group"])
@pytest.mark.parametrize(
    ("name", "value", "make"), VALUES, ids=[f"{n}={v!r}-{m.__name__}" for n, v, m in VALUES]
)
def test_options_may_be_numpys_or_tensors_without_dimensions(name, value, make, where):
    given = make(value)
    if where == "constructor":
        optimizer = SOAP(parameters(SHAPES), **{name: given})
    else:
        optimizer = SOAP([{"params": parameters(SHAPES), name: given}])
    found = optimizer.param_groups[0][name]
    assert found == value
    assert type(found) is type(value)
    assert_plain(optimizer)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("betas", "ab", "a pair of numbers"),
        ("betas", {0.9: 1, 0.8: 2}, "a pair of numbers"),
        ("betas", {0.9, 0.8}, "a pair of numbers"),
        ("betas", Listed(0.9), "a pair of numbers"),
        ("betas", np.array([0.9, 0.9, 0.9]), "a pair of numbers"),
        ("betas", np.array([[0.9, 0.9]]), "a pair of numbers"),
        ("betas", torch.tensor(0.9), "a pair of numbers"),
        ("betas", torch.empty(2, device="meta"), "a pair of numbers"),
        ("betas", np.array([0.9, 1.5]), r"betas\[1\]=1.5"),
        ("betas", ("0.9", 0.9), r"betas\[0\]='0.9'"),
        ("betas", (True, 0.9), r"betas\[0\]=True"),
        ("lr", np.array([0.1]), "lr="),
        ("lr", np.float64("nan"), "lr=nan"),
        ("lr", True, "lr=True"),
        ("eps", np.bool_(True), "eps=True"),
        ("eps", torch.tensor(True), "eps=True"),
        ("eps", torch.empty((), device="meta"), "eps="),
        ("weight_decay", torch.tensor([0.1]), "weight_decay="),
        ("precondition_frequency", np.float64(10), "precondition_frequency=10.0"),
    ],
    ids=str,
)
def test_what_is_neither_is_refused_as_before(name, value, message):
    """Bools are no numbers here: where one stands for a number, something else is amiss."""
    with pytest.raises(ValueError, match=message):
        SOAP(parameters(SHAPES), **{name: value})


@on_every_backend
def test_written_into_a_group_they_do_what_plain_ones_do(backend):
    """At a steady step as at any; also a tensor that is changed in place."""
    options = {"precondition_frequency": 20, "lr": 0.1}
    plain, expected = started(backend, SHAPES, calls=3, **options)
    params, optimizer = started(backend, SHAPES, calls=3, **options)
    eps = torch.tensor(0.25)
    changes = [
        ({"betas": (0.5, 0.75)}, {"betas": np.array([0.5, 0.75])}),
        ({"betas": (0.25, 0.75)}, {"betas": torch.tensor([0.25, 0.75])}),
        ({"betas": (0.25, 0.5)}, {"betas": Listed(0.25, np.float32(0.5))}),
        ({"eps": 0.25}, {"eps": eps}),
        ({"eps": 0.5}, {"eps": eps}),
        ({"weight_decay": 0.5}, {"weight_decay": np.array(0.5)}),
        ({"lr": 0.25}, {"lr": np.float64(0.25)}),
    ]
    for call, (as_plain, as_given) in enumerate(changes, 3):
        expected.param_groups[0].update(as_plain)
        optimizer.param_groups[0].update(as_given)
        if "eps" in as_plain:
            eps.fill_(as_plain["eps"])
        for one, own in ((expected, plain), (optimizer, params)):
            generator = torch.Generator().manual_seed(call)
            for param in own:
                param.grad = torch.randn(param.shape, generator=generator).to(param.device)
            one.step()
        assert_equal(params, plain)


SCHEDULERS = {
    "lambda": lambda o: LambdaLR(o, lambda epoch: np.float64(0.5) ** epoch),
    "one cycle": lambda o: OneCycleLR(o, np.float64(0.1), total_steps=9),
    "cyclic": lambda o: CyclicLR(o, np.float64(0.01), np.float64(0.1), cycle_momentum=False),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_checkpoint_under_a_scheduler_of_numpys_numbers_is_read_with_weights_only(backend, kind):
    params = parameters(SHAPES)
    optimizer = SOAP(params, lr=np.float64(0.1), backend=backend, precondition_frequency=2)
    scheduler = SCHEDULERS[kind](optimizer)
    for call in range(4):
        train(optimizer, params, [call])
        scheduler.step()
    optimizer.param_groups[0]["lr"] = np.float64(optimizer.param_groups[0]["lr"])
    before = copy.copy(optimizer.param_groups[0])
    for layout in ("soap_fast", "reference"):
        saved = through_a_file(optimizer.state_dict(layout=layout))
        assert saved["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]
    assert all(optimizer.param_groups[0][name] is value for name, value in before.items())
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for one, own in ((optimizer, params), (other, resumed)):
        set_gradients(own, 4)
        one.step()
    assert_equal(params, resumed)


def test_what_others_have_saved_becomes_plain_as_well():
    params = parameters(SHAPES)
    optimizer = SOAP(params)
    train(optimizer, params, range(3))
    saved = optimizer.state_dict()
    given = {"betas": [0.875, np.float32(0.75)], "lr": np.float64(0.5), "eps": np.array(0.25)}
    saved["param_groups"][0].update({**given, "initial_lr": np.float64(1)})
    other = SOAP(parameters(SHAPES))
    other.load_state_dict(saved)
    assert_plain(other)
    assert other.param_groups[0]["betas"] == (0.875, 0.75)
    again = SOAP(parameters(SHAPES))
    again.load_state_dict(through_a_file(other.state_dict()))
    assert_same_bits(again.state_dict(), other.state_dict())
