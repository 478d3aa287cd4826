"""Writes a checkpoint of the installed soap_fast, and what three more steps made of it.

To be run once for every layout that is released: `python tests/data/checkpoints/record.py FILE`.
It uses nothing but the public interface, so that it runs with any version.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import torch

from soap_fast import SOAP

SHAPES = ((6, 6), (4, 3, 3, 3), (5,))
CALLS, MORE = 7, 3


def gradients(params: list[torch.nn.Parameter], call: int) -> None:
    generator = torch.Generator().manual_seed(call)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def record(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [
        {"params": params[:1], "lr": 1e-2},
        {"params": params[1:], "weight_decay": 0.0, "precondition_frequency": 3},
    ]
    if "refresh_schedule" in inspect.signature(SOAP).parameters:
        groups[1]["refresh_schedule"] = "staggered"
    optimizer = SOAP(groups, precondition_frequency=2, backend="eager")
    for call in range(CALLS):
        gradients(params, call)
        if call == 4:
            params[0].grad[0, 0] = float("nan")
        optimizer.step()
    saved = {
        "optimizer": optimizer.state_dict(),
        "params": [param.detach().clone() for param in params],
    }
    for call in range(CALLS, CALLS + MORE):
        gradients(params, call)
        optimizer.step()
    saved["went_on"] = [param.detach().clone() for param in params]
    torch.save(saved, path)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
