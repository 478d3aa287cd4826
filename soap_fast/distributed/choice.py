"""How an optimizer's work is shared, as its options say."""

from __future__ import annotations

from typing import Literal, get_args

import torch.distributed as dist

from soap_fast.distributed.overlapping import Overlapping
from soap_fast.distributed.owning import Owning
from soap_fast.distributed.sharing import Sharing
from soap_fast.distributed.together import ALONE, Alone

Sharding = Literal["none", "refresh", "state"]
SHARDINGS = get_args(Sharding)


def sharing_of(sharding: str, group: dist.ProcessGroup | None, overlap: bool = False) -> Alone:
    """Who shares an optimizer's work, as its options say.

    Raises:
        ValueError: an unknown sharding, one that has nothing to overlap, or no process group that
            this process is in.
    """
    if sharding not in SHARDINGS:
        raise ValueError(
            f"sharding={sharding!r} is not one of {SHARDINGS}: 'none' does all work on every rank"
        )
    if not isinstance(overlap, bool):
        raise ValueError(f"overlap={overlap!r} is not True or False: pass a bool")
    if overlap and sharding != "refresh":
        raise ValueError(
            f"overlap=True has nothing to overlap with sharding={sharding!r}: leave it out, or "
            "take sharding='refresh', which exchanges bases"
        )
    if sharding == "none":
        return ALONE
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"sharding={sharding!r} needs processes to share with: call "
            "torch.distributed.init_process_group first, or take sharding='none'"
        )
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"process_group={group!r} is not a torch.distributed.ProcessGroup")
    if dist.get_rank(group) < 0:
        raise ValueError("process_group is one that this process is no member of")
    if sharding == "state":
        return Owning(group)
    return Overlapping(group) if overlap else Sharing(group)
