"""How `gather` and `apply` walk a tensor as it is beside its plane [fold, positions]."""

import triton
import triton.language as tl

from soap_fast.fused.columns import FOLD_AXES, PLANE, ROW_AXES
from soap_fast.triton_kernels.table import floats, strided

FOLD = tl.constexpr(PLANE["fold"])
POSITIONS = tl.constexpr(PLANE["positions"])
INNER = tl.constexpr(PLANE["inner"])
PITCH = tl.constexpr(PLANE["pitch"])
MATRIX = tl.constexpr(PLANE["matrix"])
ROWS_AT = tl.constexpr(PLANE["row0_size"])
FOLD_AT = tl.constexpr(PLANE["fold0_size"])
ROW_COUNT = tl.constexpr(ROW_AXES)
FOLD_COUNT = tl.constexpr(FOLD_AXES)


@triton.jit
def rows(task, position):
    """Of positions of a plane: the offsets of their rows in the tensor, where they are no padding.

    Returns:
        Offsets, int32, and whether there is a row.
    """
    inner = tl.load(task + INNER).to(tl.int32)
    pitch = tl.load(task + PITCH).to(tl.int32)
    within = position % pitch
    real = (within < inner) & (position < tl.load(task + POSITIONS).to(tl.int32))
    return strided(position // pitch * inner + within, task + ROWS_AT, ROW_COUNT), real


@triton.jit
def folded(task, S: tl.constexpr):
    """Of the folded mode's entries 0 .. S - 1: offsets in the tensor and in the plane, and more.

    Returns:
        Both offsets [S, 1], whether there is an entry [S, 1], and the mode's matrix [S, S].
    """
    k = tl.arange(0, S)
    in_tensor = strided(k, task + FOLD_AT, FOLD_COUNT)[:, None]
    in_plane = k[:, None] * tl.load(task + POSITIONS).to(tl.int32)
    inside = (k < tl.load(task + FOLD))[:, None]
    matrix = tl.load(floats(tl.load(task + MATRIX)) + k[:, None] * S + k[None, :])
    return in_tensor, in_plane, inside, matrix
