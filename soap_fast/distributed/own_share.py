"""What a rank computes of a refresh that is shared, put where it is sent from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from soap_fast.distributed.exchange import NEW, Exchange, Parts
from soap_fast.step.refresh import FAILED, LEFT_OUT, Refreshed

RefreshOp = Callable[..., Refreshed]


def compute_own(
    op: RefreshOp,
    exchange: Exchange,
    rank: int,
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> Exception | None:
    """Refresh a rank's own factors in the memory of its messages; the bases of all stay.

    Args:
        selections: of whole stacks in order, or of fewer factors; `allowed` has as many.

    Returns:
        What computing them raised. What is then sent changes no basis, and is made without memory,
        which may be what is missing.
    """
    own = {stack: exchange.deal.of(rank, stack) for stack in exchange.own[NEW]}

    def copy_bases() -> None:
        for stack, place in exchange.own[NEW].items():
            _copy_chosen(bases[stack], selections[stack], own[stack], place)

    may = [allowed[stack][part] for stack, part in own.items()]
    copy_bases()
    try:
        k = [factors[stack] for stack in own]
        renewed = list(exchange.own[NEW].values())
        chosen = [selections[stack][part] for stack, part in own.items()]
        results = op(k, renewed, chosen, may, tolerance) if own else ()
        for places, column in zip(exchange.own[:NEW], results, strict=bool(own)):
            torch._foreach_copy_(list(places.values()), column)
    except Exception as error:  # whatever it is, the others are sent that this part has failed
        copy_bases()
        _write_as_they_were(exchange.own, may)
        return error
    return None


def _copy_chosen(stack: Tensor, selection: Tensor, part: slice, place: Tensor) -> None:
    """A part of what is selected of a stack to a place [k, ..]."""
    if len(selection) < len(stack):
        torch.index_select(stack, 0, selection[part], out=place)
    else:
        place.copy_(stack[part])


def _write_as_they_were(parts: Sequence[Parts], allowed: Sequence[Tensor]) -> None:
    """Results of a refresh that changes no basis, counted as failed; allocates nothing."""
    orders, carries, outcomes, shares = (list(column.values()) for column in parts[:NEW])
    for order in orders:
        torch.arange(order.shape[1], out=order[0])
        order[1:] = order[0]
    for carry in carries:
        carry.zero_().diagonal(dim1=1, dim2=2).fill_(1)
    for outcome, may in zip(outcomes, allowed, strict=True):
        outcome.copy_(may).mul_(FAILED - LEFT_OUT).add_(LEFT_OUT)
    for share in shares:
        share.fill_(torch.nan)
