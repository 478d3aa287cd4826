"""How work is dealt to ranks, for real inventories, and that a plan is what then happens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import built
from streams import needs_native, set_gradients

from bench import shapes
from soap_fast import SOAP, explain
from soap_fast.distributed.owning import bytes_of_state
from soap_fast.distributed.partition import dealt, loads_of
from soap_fast.distributed.planner import Planned, plan_sharing
from soap_fast.options import plan_options
from soap_fast.step.plan import plan_tensor


@given(st.lists(st.integers(0, 10**9), max_size=60), st.integers(1, 9))
def test_all_work_is_dealt_and_no_rank_has_far_more_than_its_share(costs, ranks):
    owners = dealt(costs, [0] * ranks)
    assert len(owners) == len(costs)
    assert owners == dealt(list(costs), [0] * ranks)
    loads = loads_of(costs, owners, ranks)
    assert sum(loads) == sum(costs)
    # Whoever is fullest was least full before its last piece.
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)


def planned(name: str) -> list[Planned]:
    """The tensors of an inventory under the default options."""
    options = plan_options(SOAP([torch.nn.Parameter(torch.empty(1))]).param_groups[0])
    plans = [plan_tensor(entry.shape, options) for entry in shapes.load(name).entries]
    return [Planned(plan, torch.float32, torch.float32) for plan in plans]


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("name", ["elic", "tcm_128", "lalic", "dcae"])
def test_the_models_of_the_paper_are_shared_evenly(name, ranks):
    """Within 10 % of the mean, or the largest factor alone where that is more."""
    tensors = planned(name)
    found = plan_sharing(tensors, ranks)
    assert found.imbalance <= 0.1
    assert sum(share.factors for share in found.shares) == sum(len(t.sizes) for t in tensors)
    assert found.messages == ranks


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("name", ["elic", "tcm_128", "lalic", "dcae"])
def test_their_state_is_shared_evenly(name, ranks):
    """Within 10 % of the mean, or the largest tensor's alone."""
    tensors = planned(name)
    found = plan_sharing(tensors, ranks)
    alone = max(bytes_of_state(tensor.plan, tensor.state) for tensor in tensors)
    assert max(share.owned_state for share in found.shares) <= max(1.1 * found.state / ranks, alone)
    assert sum(share.owned for share in found.shares) == len(tensors)
    assert sum(share.owned_state for share in found.shares) == found.state


def sent(group):
    """Messages and bytes of a refresh of everything."""
    params, optimizer = built(group, precondition_frequency=1)
    for call in range(2):
        set_gradients(params, call)
        optimizer.step()
    return optimizer._sharing.traffic


@pytest.mark.parametrize("count", [2, 4])
def test_what_is_planned_is_what_is_sent(ranks, count):
    _, optimizer = built(None)
    found = explain(optimizer, ranks=count).sharing
    for messages, size in ranks(count, sent):
        assert (messages, size) == (found.messages, found.sent)
    # A basis and what carries moments over to it; orders and outcomes are small beside them.
    assert 2 * found.bases < found.sent < 4 * found.bases


def test_the_page_tells_of_ranks_when_asked():
    _, optimizer = built(None)
    assert "ranks" not in str(explain(optimizer))
    page = str(explain(optimizer, ranks=2))
    assert "by 2 ranks, sharding='refresh'" in page
    assert "rank 1: " in page
    with pytest.raises(ValueError, match="ranks=0 is not an integer >= 1"):
        explain(optimizer, ranks=0)


def test_a_plan_for_one_rank_sends_nothing():
    _, optimizer = built(None)
    found = explain(optimizer, ranks=1).sharing
    assert (found.messages, found.sent, found.imbalance) == (0, 0, 0)


def inventory(name: str) -> SOAP:
    return SOAP([torch.nn.Parameter(torch.empty(e.shape)) for e in shapes.load(name).entries])


def test_what_messages_cost_and_when_sharing_pays():
    optimizer = inventory("hyperprior")
    plan = explain(optimizer, ranks=4).sharing
    found = explain(optimizer, ranks=4, link_gbps=400.0).prediction
    most = plan.sent - min(share.sent for share in plan.shares)
    assert found.refresh.least == pytest.approx(8 * most / 400e9)
    half = explain(optimizer, ranks=4, link_gbps=200.0).prediction
    assert half.refresh.least == pytest.approx(2 * found.refresh.least)
    assert half.state.least == pytest.approx(2 * found.state.least)
    for exchange in (found.refresh, found.state):
        assert 1 / 4 <= exchange.share < 1
        whole = exchange.pays_from
        assert exchange.least + exchange.share * whole == pytest.approx(whole)


def test_one_rank_alone_has_nothing_to_gain():
    found = explain(inventory("hyperprior"), ranks=1, link_gbps=400.0).prediction
    for exchange in (found.refresh, found.state):
        assert (exchange.least, exchange.pays_from) == (0, float("inf"))


@needs_native
def test_steps_are_computing_and_messages():
    optimizer = inventory("hyperprior")
    page = explain(optimizer, ranks=4, link_gbps=400.0)
    fast, slow = page.prediction, explain(optimizer, ranks=4, link_gbps=200.0).prediction
    operator = sum(phase.seconds for phase in page.refresh)
    assert fast.alone == slow.alone
    assert fast.alone.plain == pytest.approx(sum(launch.floor for launch in page.launches))
    back = sum(one.floor for one in page.launches if one.launch.startswith("rotate back"))
    assert fast.alone.refreshing == pytest.approx(fast.alone.plain + operator + back)
    # Under "refresh" all take the step; under "state" each its own, and what is sent at each.
    assert fast.refresh.steps.plain == fast.alone.plain
    assert fast.alone.plain / 4 < fast.state.steps.plain - fast.state.least < fast.alone.plain
    for one, other in ((fast.refresh, slow.refresh), (fast.state, slow.state)):
        assert 0 < one.steps.refreshing - one.least < fast.alone.refreshing
        longer = other.steps.refreshing - one.steps.refreshing
        assert longer == pytest.approx(other.least - one.least)
    mean = fast.state.steps.mean(10)
    assert str(fast).count("with a refresh of all bases") == 3
    ten = 9 * fast.state.steps.plain + fast.state.steps.refreshing
    assert 10 * mean == pytest.approx(ten)


@needs_native
def test_one_rank_steps_as_one_alone():
    found = explain(inventory("hyperprior"), ranks=1, link_gbps=400.0).prediction
    assert found.refresh.steps == found.state.steps == found.alone


def test_no_step_is_predicted_where_nobody_plans_a_refresh(monkeypatch):
    monkeypatch.setattr("soap_fast.extension.available", lambda: False)
    found = explain(inventory("hyperprior"), ranks=2, link_gbps=400.0).prediction
    assert found.alone is found.refresh.steps is found.state.steps is None
    assert "Steps of an H100" not in str(found)


def test_the_page_has_them_where_a_link_is_given():
    _, optimizer = built(None)
    assert "Gb/s" not in str(explain(optimizer, ranks=2))
    page = str(explain(optimizer, ranks=2, link_gbps=400))
    assert "Over links of 400 Gb/s" in page
    with pytest.raises(ValueError, match="link_gbps=0 is not above 0"):
        explain(optimizer, ranks=2, link_gbps=0)
    with pytest.raises(ValueError, match="link_gbps=400 needs ranks"):
        explain(optimizer, link_gbps=400)
