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


class Packing:
    """Tensors of some forms as one message of bytes.

    Attributes:
        forms: of each tensor.
        bytes: of the message.
    """

    def __init__(self, forms: Sequence[Form]) -> None:
        self.forms = forms
        self.bytes = sum(form.bytes for form in forms)
        # Wide elements first, so that each tensor is aligned to its own.
        self.order = sorted(range(len(forms)), key=lambda i: -forms[i].dtype.itemsize)

    def parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the message consists of, [bytes] uint8 each."""
        return [as_bytes(tensors[i]) for i in self.order]

    def memory(self, tensors: Sequence[Tensor] | None, device: torch.device) -> Tensor:
        """A message of these tensors, or room for one."""
        if tensors is None:
            return torch.empty(self.bytes, dtype=torch.uint8, device=device)
        return torch.cat(self.parts(tensors))

    def unpacked(self, message: Tensor) -> list[Tensor]:
        """The tensors, views of a message."""
        found: dict[int, Tensor] = {}
        start = 0
        for i in self.order:
            form = self.forms[i]
            part = message[start : start + form.bytes]
            found[i] = part.view(form.dtype).view(form.shape)
            start += form.bytes
        return [found[i] for i in range(len(self.forms))]


class Sent:
    """What one process sends the others of its group, in one message.

    Attributes:
        owner: rank in the group of the process that has the tensors.
        bytes: of the message.
    """

    def __init__(self, owner: int, packing: Packing, memory: Tensor) -> None:
        self.owner, self.packing = owner, packing
        self.message = memory  # [bytes] uint8
        self.work: dist.Work | None = None

    @property
    def bytes(self) -> int:
        return self.packing.bytes

    def tensors(self) -> list[Tensor]:
        """Views of the message: to be written before it starts, or read once it is received."""
        return self.packing.unpacked(self.message)

    def start(self, group: dist.ProcessGroup) -> None:
        """Send it, or receive it; does not wait."""
        self.work = dist.broadcast(self.message, group=group, group_src=self.owner, async_op=True)

    def received(self) -> list[Tensor]:
        """The tensors. On a GPU the current stream waits, not the host."""
        if self.work is not None:
            self.work.wait()
        return self.tensors()


def between_all(
    sent: Sequence[Sequence[Tensor]],
    forms: Sequence[Sequence[Form]],
    group: dist.ProcessGroup,
    device: torch.device,
) -> list[list[Tensor]]:
    """What every rank has for every other, in one collective.

    Args:
        sent: per rank the tensors that go to it.
        forms: per rank those of the tensors that come from it.

    Returns:
        Per rank what came from it, views of one message.
    """
    outgoing = [_aligned(tensors, device) for tensors in sent]
    packings = [Packing(coming) for coming in forms]
    sizes = [_up_to_alignment(packing.bytes) for packing in packings]
    message = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    lengths = [len(part) for part in outgoing]
    dist.all_to_all_single(message, torch.cat(outgoing), sizes, lengths, group=group)
    pairs = zip(packings, torch.split(message, sizes), strict=True)
    return [packing.unpacked(part) for packing, part in pairs]


ALIGNMENT = 8  # bytes of the widest element


def _aligned(tensors: Sequence[Tensor], device: torch.device) -> Tensor:  # [bytes] uint8
    packing = Packing([Form(tuple(t.shape), t.dtype) for t in tensors])
    room = _up_to_alignment(packing.bytes) - packing.bytes
    padding = torch.zeros(room, dtype=torch.uint8, device=device)
    return torch.cat([*packing.parts(tensors), padding])


def _up_to_alignment(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def as_bytes(tensor: Tensor) -> Tensor:  # [bytes] uint8
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def numbers_of_all(
    numbers: Sequence[int], group: dist.ProcessGroup, device: torch.device
) -> list[list[int]]:
    """The numbers of every rank, as many of each; waits for all of them.

    Args:
        device: where they travel, if the group cannot tell them on the host.
    """
    place = torch.device("cpu") if meets_on_host(group) else device
    mine = torch.tensor(numbers, dtype=torch.int64, device=place)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [one.tolist() for one in found]


def meets_on_host(group: dist.ProcessGroup) -> bool:
    """Whether a group has a backend for tensors of the host, as gloo beside NCCL."""
    return "cpu" in str(dist.get_backend_config(group))


def digest(value: object) -> int:
    """63 bits of what a value prints as, the same in every process."""
    bits = hashlib.sha256(repr(value).encode()).digest()
    return int.from_bytes(bits[:8], "little") >> 1
