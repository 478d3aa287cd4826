"""What soap_fast.explain tells, against the optimizer itself."""

from __future__ import annotations

import pytest
import torch
from streams import needs_native, parameters, train

from bench import launches, shapes
from bench.recorded import record
from soap_fast import SOAP, explain
from soap_fast.backends.triton.backend import interpreted


def test_launches_are_those_that_are_recorded():
    inventory = shapes.load("hyperprior")
    params = [torch.nn.Parameter(torch.empty(e.shape)) for e in inventory.entries]
    found = explain(SOAP(params))
    recorded = launches.counted(record(inventory), inventory)
    assert len(found.launches) + len(found.without_tiles) == recorded["launches_plain"]
    by_name = {launch.launch: launch for launch in found.launches}
    for row in recorded["by_launch"]:
        launch = by_name[row["launch"]]
        assert (launch.tiles, launch.flops, launch.bytes) == (
            row["tiles"],
            row["flops"],
            row["bytes"],
        )


def test_the_page_names_groups_and_totals():
    params = [
        torch.nn.Parameter(torch.empty(s)) for s in ((16, 12, 3, 3), (16, 12, 3, 3), (5,), ())
    ]
    page = str(explain(SOAP(params)))
    assert "16 . 12 . 3x3" in page
    assert "[5]" in page
    assert "scalar" in page
    assert "assumed of an H100, not measured" in page
    assert page == repr(explain(SOAP(params)))


def test_explaining_changes_nothing_and_works_before_and_after_steps():
    params = parameters()
    optimizer = SOAP(params)
    before = str(explain(optimizer))
    assert not optimizer.state
    train(optimizer, params, range(2))
    assert str(explain(optimizer)) == before


@pytest.mark.skipif(not interpreted(), reason="interprets kernels: TRITON_INTERPRET is not set")
def test_a_tensor_that_triton_refuses_is_named_with_its_reason():
    strange = torch.nn.Parameter(torch.randn(3, 5, 3, 5, 3, 5, 3)[::2, ::2, ::2, ::2, ::2, ::2])
    page = str(explain(SOAP([strange], backend="triton", max_precond_dim=1)))
    assert "refused: strides" in page
    assert "Backend triton: asked for by name." in page


def test_the_page_lists_the_launches_of_a_model():
    params = [torch.nn.Parameter(torch.empty(e.shape)) for e in shapes.load("hyperprior").entries]
    page = str(explain(SOAP(params)))
    assert "rotate back 1" in page
    assert "11 launches" in page


def test_no_parameters_to_step_with_factors():
    found = explain(SOAP([torch.nn.Parameter(torch.empty(0, 3))]))
    assert found.factors == 0
    assert found.launches == []


@needs_native
def test_the_page_predicts_a_refresh():
    params = [torch.nn.Parameter(torch.empty(s)) for s in ((70, 40), (40, 40), (5,))]
    found = explain(SOAP(params))
    by_phase = {phase.phase: phase for phase in found.refresh}
    assert by_phase["times_factor"].flops == 2 * (70**3 + 3 * 40**3)
    assert by_phase["factor_columns"].launches == 1  # of two steps
    page = str(found)
    assert "Launches of the extension on an NVIDIA GPU for a refresh of all bases" in page
    assert "ms predicted of an H100 by a model, not measured" in page


def test_without_the_extension_no_refresh_is_predicted(monkeypatch):
    monkeypatch.setattr("soap_fast.extension.available", lambda: False)
    assert not explain(SOAP([torch.nn.Parameter(torch.empty(70, 40))])).refresh
