"""What processes tell each other: a few numbers they must agree on, and tensors as flat bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Form(NamedTuple):
    """Shape and dtype of a tensor that another process has."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Sent:
    """What one process sends the others of its group, in one message.

    Attributes:
        owner: rank in the group of the process that has the tensors.
        forms: of each tensor, known to all.
    """

    def __init__(self, owner: int, forms: Sequence[Form], device: torch.device) -> None:
        self.owner, self.forms, self.device = owner, forms, device
        # Wide elements first, so that each tensor is aligned to its own.
        self.order = sorted(range(len(forms)), key=lambda i: -forms[i].dtype.itemsize)
        self.message: Tensor | None = None
        self.work: dist.Work | None = None

    @property
    def bytes(self) -> int:
        return sum(form.bytes for form in self.forms)

    def start(self, group: dist.ProcessGroup, tensors: Sequence[Tensor] | None) -> None:
        """Send these tensors, or receive them where they are None; does not wait."""
        if tensors is None:
            self.message = torch.empty(self.bytes, dtype=torch.uint8, device=self.device)
        else:
            self.message = torch.cat([as_bytes(tensors[i]) for i in self.order])
        self.work = dist.broadcast(self.message, group=group, group_src=self.owner, async_op=True)

    def received(self) -> list[Tensor]:
        """The tensors, views of the message. On a GPU the current stream waits, not the host."""
        assert self.message is not None
        if self.work is not None:
            self.work.wait()
        found: dict[int, Tensor] = {}
        start = 0
        for i in self.order:
            form = self.forms[i]
            part = self.message[start : start + form.bytes]
            found[i] = part.view(form.dtype).view(form.shape)
            start += form.bytes
        return [found[i] for i in range(len(self.forms))]


def as_bytes(tensor: Tensor) -> Tensor:  # [bytes] uint8
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def numbers_of_all(
    numbers: Sequence[int], group: dist.ProcessGroup, device: torch.device
) -> list[list[int]]:
    """The numbers of every rank, as many of each; waits for all of them."""
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [one.tolist() for one in found]


def digest(value: object) -> int:
    """63 bits of what a value prints as, the same in every process."""
    bits = hashlib.sha256(repr(value).encode()).digest()
    return int.from_bytes(bits[:8], "little") >> 1
