"""Whole tensors in place of parameters that are spread: with their owners, for the time of a step.

Every rank sends each owner its part of the owner's gradients and parameters. The owner steps whole
tensors as if there were no others, and sends every rank its part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.messages import Form, between_all
from soap_fast.distributed.spread import Spread, local_of, spread_of
from soap_fast.step.checks import is_dtensor


class Wholes:
    """The spread parameters of an optimizer, and whole ones of this rank's own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.spread: dict[Tensor, Spread] = {}
        self.owners: dict[Tensor, int] = {}
        self.standing_in: dict[Tensor, Tensor] = {}  # for this rank's own
        self.kinds: dict[Tensor, tuple[torch.dtype, torch.device]] = {}

    def add(self, param: Tensor, owner: int) -> None:
        """A parameter that a rank owns, if it is spread.

        Raises:
            ValueError: in a way that cannot be gathered.
        """
        if not is_dtensor(param):
            return
        self.spread[param], self.owners[param] = spread_of(param, self.group), owner
        local = local_of(param)
        self.kinds[param] = local.dtype, local.device
        if owner == self.rank:
            whole = torch.empty(param.shape, dtype=local.dtype, device=local.device)
            self.standing_in[param] = torch.nn.Parameter(whole, param.requires_grad)

    def place(self, param: Tensor) -> Tensor:
        """What stands in for a parameter here: of its owner's, a whole one."""
        return self.standing_in.get(param, param)

    def gather(self, params: Sequence[Tensor]) -> None:
        """Values and gradients of these parameters, to their owners.

        Args:
            params: spread ones that have gradients, on every rank the same.

        Raises:
            ValueError: one was of another dtype or device when it was added.
        """
        for param in params:
            self._check_kind(param)
        for device, some in _by_device(params).items():
            sent: list[list[Tensor]] = [[] for _ in range(self.ranks)]
            come: list[list[Tensor]] = [[] for _ in range(self.ranks)]  # to views of whole ones
            for param in some:
                owner, spread = self.owners[param], self.spread[param]
                both = local_of(param), local_of(param.grad)  # type: ignore[arg-type]
                if self.rank in spread.senders[owner]:
                    sent[owner] += both
                if owner != self.rank:
                    continue
                whole = self.standing_in[param]
                whole.grad = torch.empty_like(whole, dtype=both[1].dtype)
                for rank in spread.senders[owner]:
                    come[rank] += (spread.of(whole.data, rank), spread.of(whole.grad, rank))
            _exchange(sent, come, self.group, device)

    def _check_kind(self, param: Tensor) -> None:
        local, (dtype, device) = local_of(param), self.kinds[param]
        if (local.dtype, local.device) != (dtype, device):
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is {local.dtype} on {local.device} and "
                f"was {dtype} on {device}: build the optimizer after the model is converted"
            )

    def scatter(self, params: Sequence[Tensor]) -> None:
        """Values of these parameters, from their owners to whoever has a part of them."""
        for device, some in _by_device(params).items():
            sent: list[list[Tensor]] = [[] for _ in range(self.ranks)]
            come: list[list[Tensor]] = [[] for _ in range(self.ranks)]
            for param in some:
                owner, spread = self.owners[param], self.spread[param]
                come[owner].append(local_of(param))
                if owner == self.rank:
                    whole = self.standing_in[param]
                    whole.grad = None
                    for rank, parts in enumerate(sent):
                        parts.append(spread.of(whole.data, rank))
            _exchange(sent, come, self.group, device)
            torch.autograd.graph.increment_version(some)  # parts were written, not the wrapper


def _exchange(
    sent: Sequence[Sequence[Tensor]],
    come: Sequence[Sequence[Tensor]],
    group: dist.ProcessGroup,
    device: torch.device,
) -> None:
    """What goes to each rank, and the places of what comes from each; in one collective."""
    forms = [[Form(tuple(t.shape), t.dtype) for t in places] for places in come]
    found = between_all(sent, forms, group, device)
    for places, tensors in zip(come, found, strict=True):
        if places:
            torch._foreach_copy_(list(places), tensors)


def _by_device(params: Sequence[Tensor]) -> Mapping[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for param in params:
        found.setdefault(local_of(param).device, []).append(param)
    return found
