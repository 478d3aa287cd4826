"""Models that FSDP2 spreads over ranks in tests, and one process that takes the same gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from shared import OPTIONS
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from soap_fast import SOAP

HSDP = "2x2"  # two replicas, each of two shards


class Model(torch.nn.Module):
    """Of modes that no number of ranks divides, some smaller than it; no forward reaches one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(2, 6, 3)
        self.wide, self.narrow = torch.nn.Linear(6, 9), torch.nn.Linear(9, 3)
        self.last = torch.nn.Linear(3, 1)
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, 2, 4, 4]
        y = self.convolution(x).mean((2, 3)).tanh()
        return self.last(self.narrow(self.wide(y).tanh()).tanh())


def mesh_of(group: dist.ProcessGroup, kind: str = "") -> DeviceMesh:
    if kind == HSDP:
        return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    return DeviceMesh.from_group(group, "cpu")


def spread(group: dist.ProcessGroup, kind: str = "") -> Model:
    """The model, each layer of its own unit as in FSDP2's tutorials."""
    model, mesh = Model(), mesh_of(group, kind)
    for layer in (model.convolution, model.wide, model.narrow):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def optimizer_of(model: torch.nn.Module, group: dist.ProcessGroup | None, **options: Any) -> SOAP:
    sharing = {} if group is None else {"sharding": "state", "process_group": group}
    return SOAP(model.named_parameters(), **{**OPTIONS, **sharing, **options})


def backward(model: torch.nn.Module, call: int, rank: int) -> None:
    seed = torch.Generator().manual_seed(100 * call + rank)
    model(torch.randn(4, 2, 4, 4, generator=seed)).square().mean().backward()


def full(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def values(model: torch.nn.Module) -> list[torch.Tensor]:
    return [full(p.detach()).clone() for p in model.parameters()]


def end_of(model: torch.nn.Module, optimizer: SOAP) -> tuple[list[torch.Tensor], dict[str, Any]]:
    optimizer.consolidate_state_dict()
    return values(model), optimizer.state_dict()


def train(
    model: torch.nn.Module, optimizer: SOAP, calls: Iterable[int], rank: int, clip: float = 0
) -> list[list[torch.Tensor | None]]:
    """Take these steps; returns the gradients of each, whole."""
    gradients = []
    for call in calls:
        optimizer.zero_grad()
        backward(model, call, rank)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        gradients.append([full(p.grad) for p in model.parameters()])
        optimizer.step()
    return gradients


def one_process(gradients: list[list[torch.Tensor | None]], **options: Any):
    """Parameters and state of one process that is given these gradients."""
    model = Model()
    optimizer = optimizer_of(model, None, **options)
    for of_step in gradients:
        for param, grad in zip(model.parameters(), of_step, strict=True):
            param.grad = grad
        optimizer.step()
    return end_of(model, optimizer)
