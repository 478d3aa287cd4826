"""Refresh: the bases of all factors follow them, in one call.

For each selected factor K with basis Q, one round of orthogonal iteration:

    H = QᵀKQ ;  off = |H - diag H|_F / |H|_F ;  order = argsort(-diag H)
    Q_new = Q of QR(K Q[:, order]) ;  carry = Q_oldᵀ Q_new

Rows and columns of K that are exactly zero, those of Z, are taken out before the QR: the last |Z|
columns of Q_new are their unit vectors, ascending, and its other columns are exactly 0 in those
rows. `order` puts columns of Q last that vanish outside of those rows, whatever the others'
eigenvalues. Where Q mixes such rows with others, as bases of old checkpoints may, as many of its
columns as there are rows left are taken; by Cholesky, a reflection of its columns sets them apart
first, and `order` is of the reflected ones.

A basis stays, with `order` and `carry` the identity, where the step was not allowed, where K is
zero, where off <= tolerance with tolerance > 0, and where K is not finite, which counts as failed.

Bases lie as the factors do, in a stack of as many, or are those of the selection alone, in its
order. So the bases of some factors of a stack can be copies, and their factors need none.

Source: arXiv 2409.11321, Algorithm 4 (`get_orthogonal_matrix_QR` of the reference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from soap_fast import extension
from soap_fast.ranges import station
from soap_fast.step.alignment import all_aligned
from soap_fast.step.refresh_plan import refresh_plan

__all__ = [
    "FAILED",
    "KEPT",
    "LEFT_OUT",
    "REFRESHED",
    "Lent",
    "Refreshed",
    "lending",
    "lent_bytes",
    "refresh_by_cholesky",
    "refresh_eager",
    "refresh_launches",
    "refresh_native",
    "refresh_times",
    "stacked",
    "uninitialised",
]

# What became of a basis; csrc/refresh/phases/outcome.h names the same numbers.
LEFT_OUT, REFRESHED, KEPT, FAILED = 0, 1, 2, 3

# Room for a tensor of a shape, of the dtype and on the device of another one.
Empty = Callable[[Tensor, Sequence[int]], Tensor]


def nothing_kept(selections: Sequence[Tensor]) -> Refreshed | None:
    """Of a caller that keeps no results."""
    return None


class Lent(NamedTuple):
    """Memory that a caller of the refresh has no other use for meanwhile.

    Attributes:
        room: for carrying matrices.
        workspace: flat, of the extension's operator on CUDA, whose rounds are cut to it; None
            where it takes its own.
        results: the memory of all results by the selections, where the caller keeps it.
    """

    room: Empty = Tensor.new_empty
    workspace: Tensor | None = None
    results: Callable[[Sequence[Tensor]], Refreshed | None] = nothing_kept


NOTHING = Lent()
_lent: ContextVar[Lent] = ContextVar("lent", default=NOTHING)


class Refreshed(NamedTuple):
    """One tensor per stack in each list; k is the length of its selection.

    Where processes share a refresh on the CPU, k tensors in place of one: see `stacked`.
    """

    orders: list[Tensor]  # [k, d] int64, the old columns by descending eigenvalue estimate, Z last
    carries: list[Tensor]  # [k, d, d] Q_oldᵀ Q_new
    outcomes: list[Tensor]  # [k] int64, one of the four constants
    off_diagonals: list[Tensor]  # [k] before the refresh; NaN where it was not looked at


def stacked(column: Sequence[Tensor | Sequence[Tensor]]) -> list[Tensor]:  # [k, ..] per stack
    """A list of `Refreshed`, or of new bases, with one tensor per stack."""
    return [one if isinstance(one, Tensor) else torch.stack(list(one)) for one in column]


@station
def refresh_eager(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> Refreshed:
    """The definition, in plain torch.

    Args:
        factors: stacks [n, d, d] of symmetric K, float32 or float64.
        bases: of orthogonal Q, changed in place: stacks [n, d, d] as the factors', or where k is
            not n, those that are selected, [k, d, d].
        selections: [k] int32 per stack, indices into it, distinct where bases are n.
        allowed: [k] bool per stack; where False the basis is left alone.
        tolerance: keep a basis whose off-diagonal share is not above this; 0 refreshes all.
    """
    stacks = zip(factors, bases, selections, allowed, strict=True)
    columns = zip(*(_refresh_stack(*stack, tolerance) for stack in stacks), strict=True)
    return Refreshed(*map(list, columns)) if factors else Refreshed([], [], [], [])


def refresh_native(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> Refreshed:
    """The same by the extension, which must be available. All tensors on one device.

    On CUDA nothing is waited for, and selections are not read by the host: a factor that is named
    twice has an undefined basis, an index outside the stack makes a failed factor. Products run at
    torch's float32 matmul precision, which must be full: tf32 loses the small eigenvalues.

    Raises:
        RuntimeError: for shapes, dtypes or, on the CPU, indices that break the rules of
            `refresh_eager`.
    """
    results = uninitialised(factors, selections)
    torch.ops.soap_fast.refresh_.default(
        factors, bases, selections, allowed, tolerance, *results, _lent_now().workspace
    )
    return results


def refresh_launches(factors: Sequence[Tensor], selections: Sequence[Tensor], lent: int = 0) -> int:
    """Kernels that `refresh_native` launches on CUDA, a grouped product counted as one.

    Shapes alone matter: stacks [n, d, d] and selections [k], on any device. More factors of the
    same sizes are no more launches, as long as their workspace fits in 1 GiB: 4 k d^2 elements, 5
    where 4 does not divide d.

    Args:
        lent: bytes of workspace that the caller lends, where it does.
    """
    found = 0
    for dtype in (torch.float32, torch.float64):
        pairs = zip(factors, selections, strict=True)
        stacks = [(k.shape[1], len(chosen)) for k, chosen in pairs if k.dtype == dtype]
        of_dtype = lent if dtype == torch.float32 else 0
        found += sum(launch.kernels for launch in refresh_plan(stacks, dtype, of_dtype))
    return found


def refresh_by_cholesky(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
    *,
    householder_up_to: int = 32,
) -> Refreshed:
    """The same by the algorithm of `refresh_native` on CUDA, which runs on the CPU too.

    Larger factors by QR of the Cholesky factor of QᵀKQ, which is made of matrix products. A pivot
    that rounding took is lifted. Where one is below that, or the new basis is far from orthogonal,
    the old one stays and counts as failed.

    Args:
        householder_up_to: sizes up to this, at most 32, by Householder's QR of K Q.
    """
    results = uninitialised(factors, selections)
    if factors:
        torch.ops.soap_fast.refresh_by_cholesky_.default(
            factors, bases, selections, allowed, tolerance, *results, householder_up_to,
            _lent_now().workspace,
        )  # fmt: skip
    return results


def refresh_times(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> list[float]:
    """As `refresh_by_cholesky`; microseconds of each launch, by its number in the plan.

    Waits for the device. Of a launch that has nothing to do it is the time of none.
    """
    results = uninitialised(factors, selections)
    lent = _lent_now().workspace
    given = (factors, bases, selections, allowed, tolerance, *results, 32, lent)
    times: list[float] = torch.ops.soap_fast.refresh_times_.default(*given)
    return times


def uninitialised(factors: Sequence[Tensor], selections: Sequence[Tensor]) -> Refreshed:
    """Room for the results of a refresh."""
    room, _, kept = _lent_now()
    found = kept(selections)
    if found is not None:
        return found
    shapes = [(s, c.shape[0], s.shape[1]) for s, c in zip(factors, selections, strict=True)]
    return Refreshed(
        orders=[stack.new_empty((k, d), dtype=torch.int64) for stack, k, d in shapes],
        carries=[room(stack, (k, d, d)) for stack, k, d in shapes],
        outcomes=[stack.new_empty((k,), dtype=torch.int64) for stack, k, _ in shapes],
        off_diagonals=[stack.new_empty((k,)) for stack, k, _ in shapes],
    )


@contextmanager
def lending(lent: Lent) -> Iterator[None]:
    """Within it refreshes use this memory."""
    token = _lent.set(lent)
    try:
        yield
    finally:
        _lent.reset(token)


def lent_bytes() -> int:
    """Of the workspace that is lent now."""
    workspace = _lent_now().workspace
    return 0 if workspace is None else workspace.nbytes


def _lent_now() -> Lent:
    # torch.compile cannot follow a context variable.
    return NOTHING if torch.compiler.is_compiling() else _lent.get()


def slots_of_bases(factors: Tensor, bases: Tensor, selection: Tensor) -> Tensor:  # [k] int32
    """Where the bases of the selected factors lie among these bases."""
    if len(bases) == len(factors):
        return selection
    return torch.arange(len(selection), dtype=selection.dtype, device=selection.device)


class Examined(NamedTuple):
    """What H says of k factors.

    Attributes:
        kq, h: K Q and QᵀKQ, [k, d, d].
        off: [k] float64 share of H off its diagonal.
        zero: [k, d] rows of K that are zero, and columns too.
        finite, change: [k] whether K is, and whether the basis becomes another.
        order: [k, d] int64, as in `Refreshed`.
        outcome: [k] int64 of those that are allowed.
    """

    kq: Tensor
    h: Tensor
    off: Tensor
    zero: Tensor
    finite: Tensor
    change: Tensor
    order: Tensor
    outcome: Tensor


def examine(k: Tensor, q: Tensor, allowed: Tensor, tolerance: float) -> Examined:
    """Which bases change, and how their columns are ordered.

    Args:
        k, q: [k, d, d].
        allowed: [k] bool.
    """
    kq = k @ q  # [k, d, d]
    h = q.mT @ kq  # [k, d, d]
    eigenvalues = h.diagonal(dim1=1, dim2=2)  # [k, d] estimates
    outside = h - torch.diag_embed(eigenvalues)
    # In float64: squares of 1e-30 are zero in float32.
    norm, off = (torch.linalg.vector_norm(x, dim=(1, 2), dtype=torch.float64) for x in (h, outside))
    off = torch.where(norm == 0, 0, off / norm)  # [k]

    finite = kq.isfinite().flatten(1).all(1)  # [k]
    settled = ~kq.any(2).any(1)  # [k] zero factors have no eigenvectors to move towards
    if tolerance > 0:
        settled = settled | (off <= tolerance)
    change = allowed & finite & ~settled  # [k]

    in_place = torch.arange(q.shape[1], device=q.device).expand(eigenvalues.shape)  # [k, d]
    zero = ~k.any(2)  # [k, d]
    in_zero_rows = ~(q * ~zero[:, :, None]).any(1) & zero.any(1, keepdim=True)  # [k, d] columns
    eigenvalues = eigenvalues.masked_fill(in_zero_rows, -torch.inf)
    order = eigenvalues.argsort(dim=1, descending=True, stable=True)  # [k, d]
    order = torch.where(change[:, None], order, in_place)
    outcome = torch.where(change, REFRESHED, torch.where(finite, KEPT, FAILED))
    return Examined(kq, h, off, zero, finite, change, order, outcome)


def results_of(
    found: Examined, bases: Tensor, q_new: Tensor, q: Tensor, slots: Tensor, allowed: Tensor
) -> tuple[Tensor, ...]:
    """Put new bases [k, d, d] where they change; one stack's row of `Refreshed`.

    Args:
        slots: [k] int32, the places of these bases.
    """
    change = _wide(found.change)
    identity = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)  # [d, d]
    in_place = torch.arange(q.shape[1], device=q.device)  # [d]
    bases.index_copy_(0, slots.long(), torch.where(change, q_new, q))
    return (
        torch.where(found.change[:, None], found.order, in_place),
        torch.where(change, q.mT @ q_new, identity),
        torch.where(allowed, found.outcome, LEFT_OUT),
        torch.where(allowed & found.finite, found.off, torch.nan).to(q.dtype),
    )


def _refresh_stack(
    factors: Tensor, bases: Tensor, selection: Tensor, allowed: Tensor, tolerance: float
) -> tuple[Tensor, ...]:
    """Factors together where a copy of each is aligned, else one after the other."""
    slots = slots_of_bases(factors, bases, selection)
    if all_aligned(len(selection), factors.shape[1], factors):
        return _refresh_together(factors, bases, selection, slots, allowed, tolerance)
    one_by_one = [torch.split(of, 1) for of in (selection, slots, allowed)]
    alone = [
        _refresh_together(factors, bases, chosen, slot, flag, tolerance)
        for chosen, slot, flag in zip(*one_by_one, strict=True)
    ]
    return tuple(map(torch.cat, zip(*alone, strict=True)))


def _refresh_together(
    factors: Tensor, bases: Tensor, selection: Tensor, slots: Tensor, allowed: Tensor,
    tolerance: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    q = bases.index_select(0, slots)  # [k, d, d]
    found = examine(factors.index_select(0, selection), q, allowed, tolerance)
    identity = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)  # [d, d]
    sorted_columns = found.kq.gather(2, found.order[:, None].expand(q.shape))  # [k, d, d]
    # LAPACK must not see NaN: QR of the identity where the basis stays.
    columns = torch.where(_wide(found.change), sorted_columns, identity)
    q_new = _orthogonalised(columns, found.zero, identity)
    return results_of(found, bases, q_new, q, slots, allowed)


def _orthogonalised(columns: Tensor, zero: Tensor, identity: Tensor) -> Tensor:
    """Q of the QR of `columns` [k, d, d] without the rows `zero` [k, d]; then their unit vectors.

    With those rows and as many columns last, the matrix is [C 0; 0 I]: nothing is left to a solver
    but C, and where there are no such rows nothing changes.
    """
    rows = zero.to(torch.uint8).argsort(dim=1, stable=True)  # [k, d] the others first
    places = rows.argsort(dim=1)  # [k, d] of each row among those
    is_last = zero.gather(1, rows)  # [k, d]
    apart = is_last[:, :, None] | is_last[:, None]  # [k, d, d]
    compressed = columns.gather(1, rows[:, :, None].expand(columns.shape))  # [k, d, d]
    q = torch.linalg.qr(torch.where(apart, identity, compressed)).Q  # [k, d, d]
    q = torch.where(apart, identity, q)
    return q.mT.gather(2, places[:, None].expand(q.shape)).mT  # columns contiguous, as of the QR


def _wide(per_factor: Tensor) -> Tensor:
    return per_factor[:, None, None]  # [k, 1, 1]


def _refresh_fake(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
    *results: object,
) -> None:
    """For torch.compile: everything is written in place, nothing is returned."""


if extension.available():
    torch.library.register_fake("soap_fast::refresh_")(_refresh_fake)
    torch.library.register_fake("soap_fast::refresh_by_cholesky_")(_refresh_fake)
