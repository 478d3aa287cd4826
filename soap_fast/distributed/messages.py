"""What processes tell each other: a few numbers they must agree on, and tensors as flat bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def lasting() -> Iterator[None]:
    """Within it memory is made that later steps may write to, also under inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


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

    def memory(self, device: torch.device) -> Tensor:  # [bytes] uint8
        """Room for such a message."""
        return torch.empty(self.bytes, dtype=torch.uint8, device=device)

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
        if self.message.is_cuda:  # which may be another stream than the one that it started on
            self.message.record_stream(torch.cuda.current_stream(self.message.device))
        return self.tensors()


class Swap:
    """What every rank has for every other, in one collective.

    Attributes:
        outgoing: per rank what goes to it, views of one message: to be written before `run`.
        incoming: per rank what comes from it, likewise, there after `run`.
    """

    def __init__(
        self,
        outgoing: Sequence[Sequence[Form]],
        incoming: Sequence[Sequence[Form]],
        group: dist.ProcessGroup,
        device: torch.device,
    ) -> None:
        self.group = group
        self.sent, self.sent_sizes, self.outgoing = _side_by_side(outgoing, device)
        self.come, self.come_sizes, self.incoming = _side_by_side(incoming, device)

    def run(self) -> None:
        dist.all_to_all_single(
            self.come, self.sent, self.come_sizes, self.sent_sizes, group=self.group
        )


ALIGNMENT = 8  # bytes of the widest element


def _side_by_side(
    forms: Sequence[Sequence[Form]], device: torch.device
) -> tuple[Tensor, list[int], list[list[Tensor]]]:
    """A message of a part for each rank, bytes of each part, and the tensors in it, views."""
    packings = list(map(Packing, forms))
    sizes = [-(-packing.bytes // ALIGNMENT) * ALIGNMENT for packing in packings]
    message = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
    parts = zip(packings, torch.split(message, sizes), strict=True)
    return message, sizes, [packing.unpacked(part) for packing, part in parts]


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
