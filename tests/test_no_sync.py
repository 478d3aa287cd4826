"""After its first call a tensor's steps never wait for the device."""

from __future__ import annotations

import pytest
import torch
from streams import backends, parameters, set_gradients, train
from torch.utils._python_dispatch import TorchDispatchMode

from soap_fast import SOAP
from soap_fast.diagnostics import ActivationStatistics, InterStepScore

# What reads a value back to the host, or has a shape that depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert not any(name in str(op) for name in READS), op
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_grads": True, "correct_bias": False},
        {"precondition_1d": True, "merge_dims": True, "max_precond_dim": 20},
        {"eps": 0.0},
    ],
    ids=lambda options: ",".join(options) or "default",
)
@pytest.mark.parametrize("backend", backends())
def test_later_calls_read_nothing_back(backend, options):
    """By eager as well, which tensors on a GPU are stepped by where there is no Triton."""
    params = parameters()
    optimizer = SOAP(params, backend=backend, precondition_frequency=2, **options)
    train(optimizer, params, range(2))
    for call in range(2, 6):
        set_gradients(params, call)
        if call == 4:
            params[1].grad[0] = float("nan")
        with NoReads():
            optimizer.step()


def test_nor_do_diagnostics_that_are_kept_along():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    optimizer = SOAP(model.parameters())
    followed = [InterStepScore(optimizer, entries=entries) for entries in (None, 3)]
    with ActivationStatistics(model), NoReads():
        for _ in range(4):
            model(torch.ones(2, 4))
            for one in followed:
                one.update()


def test_the_watch_notices_a_read():
    with pytest.raises(AssertionError), NoReads():
        torch.ones(()).item()
