"""A parameter that stands twice in a group, as tied weights do, is one parameter."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from streams import ON_CPU, assert_same_bits, parameters, set_gradients, through_a_file, train

from soap_fast import SOAP, explain, precondition

pytestmark = pytest.mark.filterwarnings("ignore:.*duplicate parameters")
SHAPES = ((4, 3), (3, 2, 2), (3,))
ORDER = (0, 1, 0, 2, 1)  # where each stands


def pair(backend, calls=0, **options):
    """Parameters once and twice, stepped alike, with their optimizers."""
    options = {"precondition_frequency": 2, "backend": backend, **options}
    once, twice = parameters(SHAPES), parameters(SHAPES)
    plain, doubled = SOAP(once, **options), SOAP([twice[i] for i in ORDER], **options)
    for optimizer, params in ((plain, once), (doubled, twice)):
        train(optimizer, params, range(calls))
    return (once, plain), (twice, doubled)


def assert_alike(once, plain, twice, doubled):
    for param, twin in zip(once, twice, strict=True):
        assert torch.equal(param, twin)
        assert_same_bits(dict(plain.state[param]), dict(doubled.state[twin]))


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_it_takes_one_step_a_call(backend, schedule):
    """The first one, plain ones and refreshes."""
    for calls in (1, 2, 6):
        one, other = pair(backend, calls, refresh_schedule=schedule)
        assert_alike(*one, *other)


@pytest.mark.parametrize("backend", ON_CPU)
def test_in_a_group_that_joins_later(backend):
    (once, plain), (twice, doubled) = pair(backend, 2)
    for params, optimizer, order in ((once, plain, (0, 1)), (twice, doubled, (0, 1, 1, 0))):
        late = parameters(((2, 2), (2,)))
        optimizer.add_param_group({"params": [late[i] for i in order]})
        params += late
        train(optimizer, params, range(2, 6))
    assert_alike(once, plain, twice, doubled)


def test_in_two_groups_torch_raises():
    (param,) = parameters(((2, 2),))
    with pytest.raises(ValueError, match="more than one parameter group"):
        SOAP([{"params": [param]}, {"params": [param]}])


def test_a_state_dict_has_the_indices_of_torchs_optimizers():
    for order in (ORDER, (0, 0, 1), (1, 0, 1), (0, 1, 2)):
        params = parameters(SHAPES)
        groups = [
            {"params": [params[i] for i in order]},
            {"params": (parameters(((2, 2),)) * 2)},
        ]
        set_gradients([p for group in groups for p in group["params"]], 0)
        ours, adam = (make([dict(group) for group in groups]) for make in (SOAP, torch.optim.Adam))
        ours.step()
        adam.step()
        found, expected = ours.state_dict(), adam.state_dict()
        assert [g["params"] for g in found["param_groups"]] == [
            g["params"] for g in expected["param_groups"]
        ]
        assert set(found["state"]) == set(expected["state"])


@pytest.mark.parametrize("layout", ["soap_fast", "reference"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_checkpoint_goes_on_bit_for_bit(backend, layout):
    _, (twice, doubled) = pair(backend, 3)
    saved = through_a_file(doubled.state_dict(layout=layout))
    resumed = parameters(SHAPES)
    for param, value in zip(resumed, twice, strict=True):
        param.data.copy_(value)
    other = SOAP([resumed[i] for i in ORDER], backend=backend)
    other.load_state_dict(saved)
    for params, optimizer in ((twice, doubled), (resumed, other)):
        train(optimizer, params, range(3, 6))
    for param, twin in zip(twice, resumed, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.parametrize("backend", ON_CPU)
def test_tied_and_untied_states_load_where_groups_are_of_one_size(backend):
    """Untied, each of the two goes on from the state of the one; tied, the last one's counts."""
    shapes = ((4, 3), (4, 3), (3,))
    apart, (shared, _, bias) = parameters(shapes), parameters(shapes)
    untied = SOAP(apart, backend=backend, precondition_frequency=2)
    tied = SOAP([shared, shared, bias], backend=backend, precondition_frequency=2)
    train(tied, [shared, bias], range(3))
    untied.load_state_dict(through_a_file(tied.state_dict()))
    for param in apart[:2]:
        assert_same_bits(dict(untied.state[param]), dict(tied.state[shared]))
    train(untied, apart, range(3, 5))
    tied.load_state_dict(through_a_file(untied.state_dict()))
    assert_same_bits(dict(tied.state[shared]), dict(untied.state[apart[1]]))
    train(tied, [shared, bias], range(5, 7))
    fewer = SOAP([shared, bias], backend=backend)
    with pytest.raises(ValueError, match=r"groups of \[3\] parameters, this optimizer of \[2\]"):
        fewer.load_state_dict(tied.state_dict())  # as torch's do


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("backend", ON_CPU)
def test_copies_go_on_by_themselves(backend, copier):
    _, (twice, doubled) = pair(backend, 3)
    copied = copier(doubled)
    listed = copied.param_groups[0]["params"]
    own = [listed[ORDER.index(i)] for i in range(len(SHAPES))]
    train(copied, own, range(3, 6))
    train(doubled, twice, range(3, 6))
    for param, twin in zip(twice, own, strict=True):
        assert torch.equal(param, twin)


def test_what_is_told_of_it():
    """Once where something is counted, at both places where each place is told of."""
    (_, plain), (twice, doubled) = pair("eager", 3)
    assert str(explain(doubled)) == str(explain(plain))
    counters = doubled.stats()["refreshed"]
    assert [counters[f"parameter {i} of group 0"] for i in range(5)] == [2, 3, 2, 0, 3]
    grads = [torch.ones_like(twice[i]) for i in ORDER]
    found = precondition(doubled, grads)
    assert torch.equal(found[0], found[2])
    assert precondition(doubled, [grads[0], *grads[1:2], None, None, None])[2:] == [None] * 3
    grads[2] = 2 * grads[2]
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 stands twice .*two gradients"):
        precondition(doubled, grads)
