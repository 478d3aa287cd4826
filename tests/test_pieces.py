"""Tables in one upload: where each begins, and that none of it is lost."""

from __future__ import annotations

import pytest
import torch

from soap_fast.backends.triton.launch.pieces import apart, joined


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_piece_begins_at_a_multiple_of_16_bytes_and_holds_what_it_did(dtype):
    pieces = [torch.arange(1, length + 1, dtype=dtype) for length in (3, 0, 8, 5, 1)]
    table = joined(pieces)
    found = apart(table, [len(piece) for piece in pieces])
    for piece, mine in zip(found, pieces, strict=True):
        assert torch.equal(piece, mine)
        assert piece.storage_offset() * piece.itemsize % 16 == 0
    assert int(table.sum()) == sum(int(piece.sum()) for piece in pieces)  # zeros between them


def test_a_piece_may_be_longer_than_what_it_holds():
    pieces = [torch.ones(3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)]
    first, second = apart(joined(pieces, [5, 2]), [5, 2])
    assert first.tolist() == [1, 1, 1, 0, 0]
    assert second.tolist() == [1, 1]
    assert second.storage_offset() == 6
