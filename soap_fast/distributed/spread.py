"""Parameters that are spread over a mesh of processes, as FSDP2 leaves them: torch's DTensor.

Of [d_0, d_1, ..] every process has some rows, or all of them. The module that defines DTensor is
not imported: whoever has such a tensor has imported it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.step.checks import is_dtensor

WAY_OUT = (
    "sharding='state' gathers whole tensors of rows: Shard(dim=0) over one dimension of the mesh "
    "at most, and Replicate() over the others, as fully_shard leaves them; leave other tensors to "
    "torch.optim.AdamW"
)


class Spread(NamedTuple):
    """Who has which rows of a tensor.

    Attributes:
        rows: per rank of the group, [start, stop) of the first mode; None where all have all.
        senders: per rank, of which ranks it gets each row once; itself where all have all.
    """

    rows: list[tuple[int, int]] | None
    senders: list[list[int]]

    def of(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part of the whole tensor, a view."""
        if self.rows is None:
            return whole
        start, stop = self.rows[rank]
        return whole[start:stop]


def spread_of(param: Tensor, group: dist.ProcessGroup) -> Spread:
    """How a DTensor is spread over the processes of a group.

    Raises:
        ValueError: by another placement than those of `WAY_OUT`, or over other processes.
    """
    placements, mesh = _where(param)
    kinds = [_kind(placement) for placement in placements]
    if "other" in kinds or kinds.count("rows") > 1:
        raise ValueError(f"is a DTensor with placements {placements}: {WAY_OUT}")
    members = dist.get_process_group_ranks(group)
    if sorted(mesh.flatten().tolist()) != sorted(members):
        raise ValueError(
            f"is a DTensor on a mesh of ranks {mesh.flatten().tolist()}, the process group has "
            f"ranks {members}: give process_group the processes of the mesh"
        )
    places = [(mesh == rank).nonzero()[0].tolist() for rank in members]  # in the mesh
    if "rows" not in kinds:
        return Spread(None, [[rank] for rank in range(len(members))])
    dim = kinds.index("rows")
    rows = [chunk(param.shape[0], mesh.shape[dim], place[dim]) for place in places]
    senders = [
        [rank for rank, other in enumerate(places) if _but(other, dim) == _but(place, dim)]
        for place in places
    ]
    found = Spread(rows, senders)
    start, stop = rows[dist.get_rank(group)]
    expected = (stop - start, *param.shape[1:])
    if tuple(local_of(param).shape) != expected:
        raise ValueError(
            f"is a DTensor whose local tensor is {list(local_of(param).shape)}, where "
            f"{placements} give it {list(expected)}: rows must be shared as torch.chunk does"
        )
    return found


def check_alike(param: Tensor) -> None:
    """Refuse a gradient that is spread in another way than its parameter.

    Raises:
        ValueError: it is, or it is no DTensor.
    """
    grad = cast(Tensor, param.grad)
    if not is_dtensor(grad):
        raise ValueError(f"is a DTensor, its gradient a {type(grad).__name__}: both must be one")
    (wanted, mesh), (found, other) = _where(param), _where(grad)
    if found != wanted or not torch.equal(mesh, other) or grad.shape != param.shape:
        raise ValueError(
            f"is a DTensor {list(param.shape)} with placements {wanted}, its gradient "
            f"{list(grad.shape)} with {found}: redistribute the gradient as its parameter is"
        )


def chunk(size: int, parts: int, place: int) -> tuple[int, int]:
    """[start, stop) of the rows that a place has; the last ones may have less, or none.

    Source: torch.chunk, by which DTensor and FSDP2 share rows.
    """
    most = -(-size // parts)
    return min(place * most, size), min((place + 1) * most, size)


def local_of(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, which may be all of it; no copy."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():  # with gradients it would be another tensor
        return cast(Tensor, cast(Any, tensor).to_local())


def _where(tensor: Tensor) -> tuple[Sequence[Any], Tensor]:
    """Placements, and the ranks of the mesh in its shape."""
    spread = cast(Any, tensor)
    return tuple(spread.placements), spread.device_mesh.mesh


def _kind(placement: Any) -> str:
    name = type(placement).__name__  # a shard in strides is another one, and may inherit from Shard
    if name == "Shard" and placement.dim == 0:
        return "rows"
    return "all" if name == "Replicate" else "other"


def _but(place: Sequence[int], dim: int) -> list[int]:
    return [index for at, index in enumerate(place) if at != dim]
