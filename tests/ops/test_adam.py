"""adam against its twin: where no product precedes it."""

from __future__ import annotations

import torch
from compared import check_adam, stepped


def test_adam(alone):
    before, after = alone.seen["adam"]
    seen = 0
    for index in stepped(alone):
        if not alone.layouts[index].products:
            plane = alone.plane(before, index, "a", 0)
            found = alone.plane(after, index, "a", 0)
            check_adam(alone, index, before, after, plane, torch.zeros_like(plane), found)
            seen += 1
    assert seen == 3
