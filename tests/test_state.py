"""The state of the optimizer is what `optimizer.state` says, however it came to be so."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from streams import assert_same_bits, parameters, set_gradients, train

from soap_fast import SOAP


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(copier):
    params = parameters()
    optimizer = SOAP(params, precondition_frequency=2, backend="eager")
    train(optimizer, params, range(3))
    twin = copier(optimizer)
    twins = twin.param_groups[0]["params"]
    train(twin, twins, range(3, 8))
    train(optimizer, params, range(3, 8))
    for p, q in zip(params, twins, strict=True):
        assert p is not q
        assert torch.equal(p, q)
        assert_same_bits(dict(optimizer.state[p]), dict(twin.state[q]))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_keep_the_count_of_first_gradients_left_out(copier):
    params = parameters()
    optimizer = SOAP(params)
    set_gradients(params, 0)
    params[0].grad.fill_(float("nan"))
    optimizer.step()
    assert list(copier(optimizer).stats()["skipped"].values()) == [1, 0, 0, 0, 0]


def test_a_group_added_later_grows_the_stacks_under_live_views():
    params, extra = parameters(), parameters(((8, 8), (4, 4)), seed=5)
    optimizer = SOAP(params, precondition_frequency=2)
    train(optimizer, params, range(3))
    held = optimizer.state[params[0]]["Q"][0].clone()
    optimizer.add_param_group({"params": extra, "lr": 0.1, "precondition_frequency": 3})
    for call in range(3, 6):
        set_gradients(params, call)
        set_gradients(extra, call)
        optimizer.step()
        if call == 3:
            assert torch.equal(optimizer.state[params[0]]["Q"][0], held)

    control, alone = parameters(), parameters(((8, 8), (4, 4)), seed=5)
    train(SOAP(control, precondition_frequency=2), control, range(6))
    train(SOAP(alone, lr=0.1, precondition_frequency=3), alone, range(3, 6))
    for p, q in zip(params + extra, control + alone, strict=True):
        assert torch.equal(p, q)


def test_factors_of_one_size_stand_in_one_stack():
    params = parameters(((8, 8), (8, 3, 3), (3, 8)))
    optimizer = SOAP(params)
    train(optimizer, params, range(2))
    storages = {
        (matrix.shape[0], matrix.untyped_storage().data_ptr())
        for param in params
        for matrix in optimizer.state[param]["Q"]
    }
    assert len(storages) == 2  # one for 8, one for 3


class TestEntriesAreTheOnlyTruth:
    """Entries that users delete or replace are not brought back by tensors that begin later."""

    def begin_another(self, optimizer, shape=(8, 8)):
        late = parameters((shape,), seed=9)
        optimizer.zero_grad()
        optimizer.add_param_group({"params": late})
        train(optimizer, late, range(2))
        return late

    def test_a_deleted_entry_begins_anew(self):
        params = parameters(((8, 8), (5, 5)))
        optimizer = SOAP(params)
        train(optimizer, params, range(3))
        del optimizer.state[params[0]]
        late = self.begin_another(optimizer)
        assert params[0] not in optimizer.state
        train(optimizer, [*params, *late], range(3, 6))
        assert optimizer.state[params[0]]["calls"] == 3

    def test_a_parameter_resized_after_its_entry_was_deleted(self):
        params = parameters(((8, 8), (5, 5)))
        optimizer = SOAP(params)
        train(optimizer, params, range(3))
        del optimizer.state[params[0]]
        params[0].data = torch.ones(6, 8)
        self.begin_another(optimizer)
        train(optimizer, params, range(3, 6))
        assert [len(q) for q in optimizer.state[params[0]]["Q"]] == [6, 8]

    def test_clearing_the_state_leaves_nothing_behind(self):
        params = parameters(((8, 8),))
        optimizer = SOAP(params)
        for _ in range(3):
            optimizer.state.clear()
            train(optimizer, params, range(2))
        factor = optimizer.state[params[0]]["Q"][0]
        assert factor.untyped_storage().nbytes() == 2 * factor.nbytes  # its two modes' alone

    def test_a_replaced_basis_stays(self):
        params = parameters(((8, 8),))
        optimizer = SOAP(params)
        train(optimizer, params, range(2))
        optimizer.state[params[0]]["Q"][0] = torch.eye(8)
        self.begin_another(optimizer)
        assert torch.equal(optimizer.state[params[0]]["Q"][0], torch.eye(8))
