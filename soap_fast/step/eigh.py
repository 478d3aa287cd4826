"""First bases: eigenvectors of all factors in one call.

For each stack of symmetric factors and its selection of k indices

    K[selection[i]] = V diag(λ) Vᵀ,    λ descending

Of each factor the lower triangle is read, as `torch.linalg.eigh` does. A factor is solved under a
scale, a power of two near 1 / max|K|, so that factors from 1e-30 to 1e12 come out alike.

Rows and columns of K that are exactly zero, those of Z, are taken out before any solver: the last
|Z| columns of V are their unit vectors, ascending, and its other columns are exactly 0 in those
rows. Their eigenvalues are 0 and come last, whatever the signs of the others.

A factor that has no eigenvectors (a value is not finite, or LAPACK gives up, in float64 too) is
reported as that factor: its eigenvalues are NaN and its basis the identity. The others are not
touched by it. A zero factor has zero eigenvalues and the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soap_fast import extension
from soap_fast.ranges import station
from soap_fast.step.alignment import all_aligned

__all__ = ["eigh_eager", "eigh_native"]

Pairs = tuple[list[Tensor], list[Tensor]]
LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]


@station
def eigh_eager(factors: Sequence[Tensor], selections: Sequence[Tensor]) -> Pairs:
    """The definition, in plain torch.

    Args:
        factors: stacks [n, d, d], float32 or float64, of any strides.
        selections: one per stack, [k] int32, indices into the stack.

    Returns:
        eigenvalues, one [k, d] per stack, descending; bases, one [k, d, d] per stack, columns in
        the order of the eigenvalues.
    """
    pairs = [
        _eigh_of_stack(stack.index_select(0, selection))
        for stack, selection in zip(factors, selections, strict=True)
    ]
    return [values for values, _ in pairs], [bases for _, bases in pairs]


def eigh_native(factors: Sequence[Tensor], selections: Sequence[Tensor]) -> Pairs:
    """The same by the extension, which must be available.

    Raises:
        RuntimeError: for shapes, dtypes, devices or indices that break the rules of `eigh_eager`.
            On CUDA an index outside the stack is not looked at by the host; it makes a failed
            factor instead.
    """
    pairs: Pairs = torch.ops.soap_fast.eigh.default(factors, selections)
    return pairs


def _eigh_of_stack(factors: Tensor) -> tuple[Tensor, Tensor]:
    if factors.numel() == 0:
        return factors.new_empty(factors.shape[:2]), factors.new_empty(factors.shape)
    lower = factors.tril()  # [k, d, d]
    identity = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)  # [d, d]
    largest = lower.abs().amax((1, 2))  # [k]
    finite = largest.isfinite()  # [k]; amax hands NaN on
    regular = finite & (largest > 0)  # [k]

    # frexp splits x into mantissa · 2^e, so mantissa / x is a power of two, exactly. The bounds
    # keep it a normal number.
    info = torch.finfo(lower.dtype)
    bounded = torch.where(regular, largest, 1).clamp(info.tiny, info.max / 4)  # [k]
    scale = bounded.frexp().mantissa / bounded  # [k]
    scaled = torch.where(_wide(regular), lower * _wide(scale), identity)  # [k, d, d]

    zero = regular[:, None] & ~lower.any(2) & ~lower.any(1)  # [k, d] rows and columns
    descending, vectors = _solve_apart(scaled, zero)  # [k, d], [k, d, d]
    solved = regular & ~descending.isnan().any(1)  # [k]
    values = torch.where(solved[:, None], descending / scale[:, None], torch.nan)  # [k, d]
    values = torch.where((largest == 0)[:, None], 0, values)  # [k, d]
    bases = torch.where(_wide(solved), vectors, identity)  # [k, d, d]
    return values, bases.contiguous()


def _solve_apart(factors: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Descending eigenpairs, with the unit vectors of the rows `zero` [k, d] behind the others."""
    where = zero.cpu()
    mixed = where.any(1).nonzero().flatten().tolist()
    if not mixed:
        ascending, vectors = _solve(factors)
        return ascending.flip(1), vectors.flip(2)
    values, bases = torch.zeros_like(factors[:, 0]), torch.zeros_like(factors)
    whole = (~where.any(1)).nonzero().flatten()  # [factors without such rows]
    if len(whole):
        ascending, vectors = _solve(factors[whole])
        values[whole], bases[whole] = ascending.flip(1), vectors.flip(2)
    for i in mixed:
        rows, unit = (~where[i]).nonzero().flatten(), where[i].nonzero().flatten()  # [n], [|Z|]
        ascending, vectors = _solve(factors[i][rows][:, rows][None])  # [1, n], [1, n, n]
        values[i, : len(rows)] = ascending[0].flip(0)
        bases[i, rows, : len(rows)] = vectors[0].flip(1)
        bases[i, unit, torch.arange(len(rows), len(where[i]))] = 1
    return values, bases


def _solve(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenpairs; each factor alone where LAPACK fails, or where not all are aligned."""
    if all_aligned(len(factors), factors.shape[1], factors):
        try:
            values, vectors = torch.linalg.eigh(factors)
        except LinAlgError:
            pass
        else:
            return values, vectors
    alone = [_solve_alone(factor) for factor in factors]
    values = torch.stack([values for values, _ in alone])  # [k, d]
    return values, torch.stack([vectors for _, vectors in alone])  # [k, d, d]


def _solve_alone(factor: Tensor) -> tuple[Tensor, Tensor]:
    for dtype in (factor.dtype, torch.float64):
        try:
            values, vectors = torch.linalg.eigh(factor.to(dtype))
        except LinAlgError:
            continue
        return values.to(factor.dtype), vectors.to(factor.dtype)
    return factor.new_full(factor.shape[:1], torch.nan), torch.zeros_like(factor)


def _wide(per_factor: Tensor) -> Tensor:
    return per_factor[:, None, None]  # [k, 1, 1]


def _eigh_fake(factors: Sequence[Tensor], selections: Sequence[Tensor]) -> Pairs:
    """Shapes alone, for torch.compile."""
    stacks = list(zip(factors, selections, strict=True))
    values = [stack.new_empty((chosen.shape[0], stack.shape[1])) for stack, chosen in stacks]
    bases = [stack.new_empty((chosen.shape[0], *stack.shape[1:])) for stack, chosen in stacks]
    return values, bases


if extension.available():
    torch.library.register_fake("soap_fast::eigh")(_eigh_fake)
