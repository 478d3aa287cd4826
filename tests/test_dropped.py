"""An optimizer that is dropped gives back its memory at once, not when Python looks for cycles."""

from __future__ import annotations

import gc
import weakref

import pytest
from streams import ON_CPU, parameters, set_gradients

from soap_fast import SOAP


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_dropped_optimizer_leaves_nothing(backend):
    params = parameters(((6, 4, 3, 3), (12, 5), (5,)))
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    for call in range(5):
        set_gradients(params, call)
        optimizer.step()
    held = [optimizer, optimizer._backend, *(e["exp_avg"] for e in optimizer.state.values())]
    left = list(map(weakref.ref, held))
    gc.collect()
    gc.disable()
    try:
        del optimizer, held
        assert [found() for found in left] == [None] * len(left)
    finally:
        gc.enable()
