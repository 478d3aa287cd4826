"""The state of all ranks made known to each, where every parameter is stepped by one of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(
    state: Mapping[Any, dict[str, Any]], owners: Mapping[Tensor, int], group: dist.ProcessGroup
) -> dict[Any, dict[str, Any]]:
    """Every rank's entries, in the host's memory; on every rank, which wait for each other.

    Args:
        state: of this rank.
        owners: the rank of each parameter, in one order on all ranks.

    Raises:
        RuntimeError: another rank could not give its own; that one raises why. A rank that cannot
            read what another gave raises alone.
    """
    rank = dist.get_rank(group)
    whole: dict[Any, dict[str, Any]] = {}
    error, failed = None, set()
    for param, owner in owners.items():
        carried: list[bytes | None] = [None]
        try:
            if owner == rank:
                carried = [pickle.dumps(_on_host(state.get(param, {})))]
        except Exception as found:  # whatever it is, all ranks are told, and then all raise
            error = found
        dist.broadcast_object_list(
            carried, group=group, group_src=owner, device=_device_of(group, param)
        )
        try:
            if carried[0] is None:
                failed.add(owner)
            else:
                whole[param] = pickle.loads(carried[0])
        except Exception as found:  # whatever it is, others still wait for what this rank has
            error = found
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(
            f"ranks {sorted(failed)} could not give their state: what they raise says why"
        )
    others = {key: value for key, value in state.items() if not isinstance(key, Tensor)}
    return {**whole, **others}


def _on_host(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without views of larger memory."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(moved, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(moved, value))
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        return value

    return {key: moved(value) for key, value in entry.items()}


def _device_of(group: dist.ProcessGroup, param: Tensor) -> torch.device:
    """Where the bytes of an object travel: on a GPU for NCCL, which knows no other memory."""
    return param.device if "nccl" in str(dist.get_backend(group)) else torch.device("cpu")
