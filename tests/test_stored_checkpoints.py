"""Files that earlier layouts wrote keep loading, and training goes on as it did then."""

from __future__ import annotations

from pathlib import Path

import pytest
import tolerances
import torch
from data.checkpoints.record import CALLS, MORE, SHAPES, gradients
from streams import ON_CPU, parameters

from soap_fast import SOAP

FILES = sorted((Path(__file__).parent / "data" / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stored_file_goes_on(path, backend):
    saved = torch.load(path, weights_only=True)
    params = [torch.nn.Parameter(p) for p in saved["params"]]
    optimizer = SOAP([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    optimizer.load_state_dict(saved["optimizer"])
    assert [tuple(p.shape) for p in params] == list(SHAPES)
    assert optimizer.param_groups[1]["precondition_frequency"] == 3
    assert optimizer.stats()["skipped"]["parameter 0 of group 0"] == 1
    before = [p.detach().clone() for p in params]
    for call in range(CALLS, CALLS + MORE):
        gradients(params, call)
        optimizer.step()
    for param, start, expected in zip(params, before, saved["went_on"], strict=True):
        moved = (expected - start).abs().max()
        assert (param - expected).abs().max() <= tolerances.TRACE * moved


def test_there_are_files_of_every_layout():
    """One before refreshes were counted and could be staggered, one before there was a noise floor,
    one with lists of factors, and one of what is written today.
    """
    saved = [torch.load(path, weights_only=True)["optimizer"] for path in FILES]
    assert sorted("refreshes" in each["state"][1] for each in saved) == [False, True, True, True]
    floors = ["noise_floor" in each["param_groups"][0] for each in saved]
    assert sorted(floors) == [False, False, True, True]
    lists = [isinstance(each["state"][1]["GG"], list) for each in saved]
    assert sorted(lists) == [False, True, True, True]

    params = parameters(SHAPES)
    groups = [{"params": params[:1]}, {"params": params[1:], "refresh_schedule": "staggered"}]
    optimizer = SOAP(groups)
    gradients(params, 0)
    optimizer.step()
    optimizer.step()
    today = optimizer.state_dict()
    newest = saved[lists.index(False)]
    again = "write a file by data/checkpoints/record.py, and keep the others"
    for entry, other in zip(newest["state"].values(), today["state"].values(), strict=True):
        assert kinds_of(entry) == kinds_of(other), again
    for group, other in zip(newest["param_groups"], today["param_groups"], strict=True):
        assert group.keys() == other.keys(), again


def kinds_of(entry: dict) -> dict:
    """By key the type, of tensors the dtype, of dicts those of what is in them."""
    return {key: kind_of(value) for key, value in entry.items()}


def kind_of(value):
    if isinstance(value, dict):
        return {kind_of(item) for item in value.values()}
    return value.dtype if isinstance(value, torch.Tensor) else type(value)
