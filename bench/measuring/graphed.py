"""`step --graphed`: the optimizer's step replayed from CUDA graphs, call by call."""

from __future__ import annotations

import gc

import torch

from bench.command import Row
from bench.measuring.calls import Times, state_bytes, timed_call
from bench.output.progress import progress
from bench.shapes import Inventory
from soap_fast import SOAP, GraphedStep


def measure(inventory: Inventory, device: str, frequency: int, periods: int) -> Row:
    """Replays of plain and of refreshing calls; those before both are captured are not timed.

    Raises:
        ValueError: the Triton backend cannot run here.
    """
    params = inventory.parameters(device)
    lr = torch.tensor(3e-3, device=device)

    def made() -> SOAP:
        return SOAP(params, lr=lr, precondition_frequency=frequency, backend="triton")

    inventory.set_gradients(params, seed=1)
    loading = timed_call(made().step, device)  # compiles and loads what a first call needs
    gc.collect()
    optimizer = made()
    static = [param.grad for param in params]
    step = GraphedStep(optimizer)
    # Warm-ups of plain calls, then one period until a refresh as it comes, one until its capture.
    captured = GraphedStep.WARM_UP + 2 * frequency
    times = Times()
    for call in progress(range(captured + 1 + frequency * periods), f"{inventory.model}, graphs"):
        new = inventory.parameters(device, seed=1 + call)
        for grad, values in zip(static, new, strict=True):
            assert grad is not None
            grad.copy_(values.detach())
        refreshes = step.refreshes_next()
        elapsed = timed_call(step, device)
        if call == 0 or call > captured:
            times.add(elapsed, first=call == 0, refresh=refreshes)
    return {
        "name": "soap_fast, CUDA graphs",
        "backend": "triton",
        "shapes": inventory.model,
        "device": device,
        "threads": torch.get_num_threads(),
        "precondition_frequency": frequency,
        "tensors": len(params),
        "parameters": inventory.numel,
        **times.summary(frequency),
        **times.tail(),
        "loading_ms": loading.total,
        "samples": times.samples(),
        "peak_bytes": None,  # a graph's memory stays taken: that of the step itself is `step`'s
        "state_ratio": state_bytes(optimizer) / sum(p.nbytes for p in params),
    }
