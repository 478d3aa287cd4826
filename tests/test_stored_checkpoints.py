"""Files that earlier layouts wrote keep loading, and training goes on as it did then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.checkpoints.record import CALLS, MORE, SHAPES, gradients
from streams import backends

from soap_fast import SOAP

FILES = sorted((Path(__file__).parent / "data" / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("backend", backends())
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
        assert (param - expected).abs().max() <= 5e-4 * moved  # as for recorded trajectories


def test_there_are_files_of_every_layout():
    """One before refreshes were counted and could be staggered, one since."""
    entries = [torch.load(p, weights_only=True)["optimizer"]["state"][1] for p in FILES]
    assert sorted("refreshes" in entry for entry in entries) == [False, True]
    assert any("phases" in entry for entry in entries)
