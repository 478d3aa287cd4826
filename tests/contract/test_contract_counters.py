"""What `stats` says became of bases at their refreshes, under names of the parameters."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch
from streams import ON_CPU, assert_same_bits, parameters, set_gradients

from soap_fast import SOAP


def off_diagonal(k: torch.Tensor, q: torch.Tensor) -> float:
    """Share of QᵀKQ off its diagonal, of the Frobenius norm."""
    inside = q.double().T @ k.double() @ q.double()
    return float((inside - inside.diag().diag()).norm() / inside.norm())


@pytest.mark.parametrize("backend", ON_CPU)
def test_bases_kept_and_refreshed_and_how_far_off_they_were(backend):
    params = parameters(((3, 2), (3,)))
    named = list(zip(["weight", "bias"], params, strict=True))
    options = {"precondition_frequency": 2, "refresh_tolerance": 0.05}
    optimizer = SOAP(named, backend=backend, **options)
    weight, bias = "parameter 'weight'", "parameter 'bias'"
    assert optimizer.stats()["off_diagonal"] == {weight: [], bias: []}
    for call in range(3):  # the same gradient: its bases still fit at the refresh
        set_gradients(params, 0)
        optimizer.step()
        if call == 1:
            assert all(math.isnan(share) for share in optimizer.stats()["off_diagonal"][weight])
    entry = optimizer.state[params[0]]
    first = [q.clone() for q in entry["Q"]]
    stats = optimizer.stats()
    assert stats["kept"] == {weight: 2, bias: 0}
    assert stats["refreshed"] == stats["failed"] == stats["skipped"] == {weight: 0, bias: 0}
    assert all(0 <= share < tolerances.SAME_GRADIENT for share in stats["off_diagonal"][weight])

    for call in (1, 2):  # others: they do not fit any more
        set_gradients(params, call)
        optimizer.step()
    stats = optimizer.stats()
    assert stats["kept"] == stats["refreshed"] == {weight: 2, bias: 0}
    assert math.isnan(*stats["off_diagonal"][bias])  # one mode, which has no basis
    expected = [off_diagonal(k, q) for k, q in zip(entry["GG"], first, strict=True)]
    assert min(expected) > options["refresh_tolerance"]
    assert stats["off_diagonal"][weight] == pytest.approx(expected, rel=tolerances.SHARE)
    before = optimizer.state_dict()
    optimizer.stats()
    assert_same_bits(optimizer.state_dict(), before)
