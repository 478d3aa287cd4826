"""An optimizer on the shapes of a model whose launches are recorded and not made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.shapes import Inventory
from soap_fast import SOAP
from soap_fast.backends.triton import TritonBackend
from soap_fast.fused.engine import Engine
from soap_fast.fused.launcher import RecordingLauncher
from soap_fast.options import plan_options
from soap_fast.plan import plan_tensor
from soap_fast.state import allocate, bind, fresh, not_begun


@dataclass
class Recorded:
    """Everything of a step but the kernels: its own tables, its own order of launches."""

    optimizer: SOAP
    params: list[torch.nn.Parameter]
    launcher: RecordingLauncher

    @property
    def engine(self) -> Engine:
        (engine,) = self.optimizer._backend.engines.values()  # type: ignore[attr-defined]
        return engine

    def step(self) -> int:
        """Take one step; how many launches it would have been."""
        self.launcher.launched.clear()
        self.optimizer.step()
        return len(self.launcher.launched)


def record(inventory: Inventory, device: str = "cpu") -> Recorded:
    """After the first call and one plain step; memory is reserved and never computed with."""
    launcher = RecordingLauncher()
    # Values matter to no launch, and memory that nobody touches costs nothing.
    params = [torch.nn.Parameter(torch.empty(e.shape, device=device)) for e in inventory.entries]
    optimizer = SOAP(params, backend="eager")
    optimizer._backend = TritonBackend(launcher=launcher)
    options = plan_options(optimizer.param_groups[0])
    plans = [(param, plan_tensor(tuple(param.shape), options)) for param in params]
    for param, plan in plans:
        param.grad = torch.empty_like(param)
        optimizer.state[param] = fresh(param, plan, not_begun(param)["skipped"])
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[param][name] = torch.empty(plan.shape, device=device)
    bind(allocate(plans), optimizer.state)
    recorded = Recorded(optimizer, params, launcher)
    recorded.step()
    return recorded
