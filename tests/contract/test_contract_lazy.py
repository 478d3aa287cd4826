"""Modules whose parameters get their shapes from the first batch, after the optimizer was built."""

from __future__ import annotations

import copy

import pytest
import torch
from streams import ON_CPU, assert_same_bits, through_a_file

from soap_fast import SOAP, explain

IMAGES = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(3))


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.LazyConv2d(3, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    )


def train(model, optimizer, calls):
    for _ in calls:
        optimizer.zero_grad()
        model(IMAGES).square().sum().backward()
        optimizer.step()


def pair(backend, **options):
    """Two models of the same values; the second's optimizer is built once they are known."""
    options = {"backend": backend, "precondition_frequency": 2, **options}
    early, late = network(), network()
    optimizer = SOAP(early.named_parameters(), **options)
    optimizer.step()  # nobody has a gradient
    for model in (early, late):
        model(IMAGES)
    late.load_state_dict(early.state_dict())
    return (early, optimizer), (late, SOAP(late.named_parameters(), **options))


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_an_optimizer_built_before_the_first_batch_steps_as_one_built_after_it(backend, schedule):
    both = pair(backend, refresh_schedule=schedule)
    for model, optimizer in both:
        train(model, optimizer, range(5))
    (early, optimizer), (late, expected) = both
    assert_same_bits(dict(early.state_dict()), dict(late.state_dict()))
    assert_same_bits(optimizer.state_dict(), expected.state_dict())
    assert str(explain(optimizer)) == str(explain(expected))


@pytest.mark.parametrize("backend", [None, *ON_CPU])
def test_what_is_told_while_shapes_are_unknown(backend):
    model = network()
    optimizer = SOAP(model.named_parameters(), backend=backend)
    assert set(optimizer.stats()["skipped"].values()) == {0}
    assert "4 parameters are not initialised yet" in str(explain(optimizer))
    assert repr(optimizer).startswith("SOAP (")
    saved = through_a_file(optimizer.state_dict())
    assert saved["state"] == {}
    optimizer.load_state_dict(saved)
    assert copy.deepcopy(optimizer).state_dict()["state"] == {}


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_layer_that_is_run_later_begins_by_itself(backend):
    """Also in a group that joins before anybody knows its shapes."""
    first, late = torch.nn.Linear(4, 3), torch.nn.LazyLinear(2)
    optimizer = SOAP(first.parameters(), backend=backend, precondition_frequency=2)
    optimizer.add_param_group({"params": late.parameters()})
    model = torch.nn.Sequential(first, late)
    for call in range(5):
        optimizer.zero_grad()
        images = torch.randn(2, 4, generator=torch.Generator().manual_seed(call))
        (first if call < 2 else model)(images).square().sum().backward()
        optimizer.step()
    assert [optimizer.state[p]["calls"] for p in model.parameters()] == [5, 5, 3, 3]


def test_a_state_is_loaded_once_shapes_are_known():
    (early, optimizer), _ = pair("eager")
    train(early, optimizer, range(3))
    saved = through_a_file(optimizer.state_dict())
    model = network()
    other = SOAP(model.named_parameters(), backend="eager")
    with pytest.raises(ValueError, match=r"0\.weight: .*not initialised yet.*run the model once"):
        other.load_state_dict(saved)
    assert not other.state
    model.load_state_dict(early.state_dict())  # which gives it its shapes
    other.load_state_dict(saved)
    train(early, optimizer, range(2))
    train(model, other, range(2))
    assert_same_bits(dict(model.state_dict()), dict(early.state_dict()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.complex64}, "parameter 'weight' is complex"),
        ({"device": "meta"}, "parameter 'weight' is on the meta device"),
        ({"dtype": torch.float8_e4m3fn}, "parameter 'weight' has dtype torch.float8_e4m3fn"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_known_of_them_is_checked_at_once(options, message):
    layer = torch.nn.LazyLinear(2, **options)
    with pytest.raises(ValueError, match=message):
        SOAP(layer.named_parameters())
