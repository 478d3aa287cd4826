"""How `gather` and `apply` walk a tensor as it is beside its plane [fold, positions].

Lanes hold four positions each, 16 bytes of a plane: they lie in one line of it, since lines are
padded to a multiple of four. What a lane finds in a table or divides, it does once for all four.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import COLUMN_AXES, DTYPES, FOLD_AXES, LINE_AXES, PLANE
from soap_fast.triton_kernels.registers import apart, joined
from soap_fast.triton_kernels.table import floats, strided

KIND = tl.constexpr(PLANE["kind"])
DTYPE = tl.constexpr(PLANE["dtype"])
PLANE_ = tl.constexpr(PLANE["plane"])
FOLD = tl.constexpr(PLANE["fold"])
POSITIONS = tl.constexpr(PLANE["positions"])
INNER = tl.constexpr(PLANE["inner"])
PITCH = tl.constexpr(PLANE["pitch"])
MATRIX = tl.constexpr(PLANE["matrix"])
LINEAR = tl.constexpr(PLANE["linear"])
LINES_AT = tl.constexpr(PLANE["line0_size"])
COLUMNS_AT = tl.constexpr(PLANE["column0_size"])
FOLD_AT = tl.constexpr(PLANE["fold0_size"])
PAIR_AT = tl.constexpr(PLANE["pair0_stride"])
LINE_COUNT = tl.constexpr(LINE_AXES)
COLUMN_COUNT = tl.constexpr(COLUMN_AXES)
FOLD_COUNT = tl.constexpr(FOLD_AXES)
FLOAT32 = tl.constexpr(DTYPES["float32"])
BFLOAT16 = tl.constexpr(DTYPES["bfloat16"])


@triton.jit
def record(task):
    """What every tile reads of its task, at once: kind, linear, dtype, positions, plane."""
    positions = tl.load(task + POSITIONS).to(tl.int32)
    plane = floats(tl.load(task + PLANE_))
    linear = tl.load(task + LINEAR)
    dtype = tl.load(task + DTYPE).to(tl.int32)
    return tl.load(task + KIND).to(tl.int32), linear, dtype, positions, plane


@triton.jit
def contiguous(linear, address):
    """Whether the elements of a tensor lie in the order of positions, from a multiple of 16 bytes.

    Its folded mode then lies innermost: element `position * fold + entry`.
    """
    return (linear != 0) & (address % 16 == 0)


@triton.jit
def elements(task, first, positions, LANES: tl.constexpr):
    """Offsets in the tensor of positions from `first`, a multiple of 4, on.

    Returns:
        Offsets, int32, and whether there is an element, not padding: [LANES, 4] both.
    """
    inner = tl.load(task + INNER).to(tl.int32)
    pitch = tl.load(task + PITCH).to(tl.int32)
    position = first + 4 * tl.arange(0, LANES)[:, None]
    line = position // pitch
    column = position - line * pitch + tl.arange(0, 4)[None, :]
    real = (column < inner) & (position < positions)
    offset = strided(line, task + LINES_AT, LINE_COUNT)
    return offset + strided(column, task + COLUMNS_AT, COLUMN_COUNT), real


@triton.jit
def in_plane(first, LANES: tl.constexpr):
    """Positions from `first` on, [LANES, 4]."""
    return first + (4 * tl.arange(0, LANES)[:, None] + tl.arange(0, 4)[None, :])


@triton.jit
def in_use(first, positions, LANES: tl.constexpr):
    """Which lanes' positions the plane has, [LANES, 1]: all four or none."""
    return first + 4 * tl.arange(0, LANES)[:, None] < positions


@triton.jit
def quads(pointer, offset, BYTES: tl.constexpr):
    """`pointer + offset`; offsets [.., 4 n] or [.., 4, E] are neighbours by fours along the axis 1.

    Of so many bytes each, the first a multiple of 4; or, with BYTES 0, not known to be anything:
    then one element is loaded at a time, and lanes merely walk that axis. The compiler sees none
    of it, and believes a hint only at the operation that adds.
    """
    at = pointer + offset
    if len(offset.shape) == 2:
        at = tl.max_contiguous(at, [1, 4])
        if BYTES > 0:
            at = tl.multiple_of(at, [1, 4 * BYTES])
    else:
        at = tl.max_contiguous(at, [1, 4, 1])
        if BYTES > 0:
            at = tl.multiple_of(at, [1, 4 * BYTES, 1])
    return at


@triton.jit
def load_quads(address, offset, mask, dtype, ALIGNED: tl.constexpr):
    """Elements of a float32, bfloat16 or float16 tensor in float32, by `quads`.

    ALIGNED where offsets and address are what these want.
    """
    if dtype == FLOAT32:
        at = quads(address.to(tl.pointer_type(tl.float32)), offset, 4 if ALIGNED else 0)
        x = tl.load(at, mask=mask, other=0.0)
    else:
        halves = quads(address.to(tl.pointer_type(tl.int16)), offset, 2 if ALIGNED else 0)
        bits = tl.load(halves, mask=mask, other=0)
        if dtype == BFLOAT16:
            x = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
        else:
            x = bits.to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def store_quads(address, offset, x, mask, dtype, ALIGNED: tl.constexpr):
    """The same back, rounded once."""
    if dtype == FLOAT32:
        at = quads(address.to(tl.pointer_type(tl.float32)), offset, 4 if ALIGNED else 0)
        tl.store(at, x, mask=mask)
    else:
        if dtype == BFLOAT16:
            bits = x.to(tl.bfloat16).to(tl.int16, bitcast=True)
        else:
            bits = x.to(tl.float16).to(tl.int16, bitcast=True)
        halves = quads(address.to(tl.pointer_type(tl.int16)), offset, 2 if ALIGNED else 0)
        tl.store(halves, bits, mask=mask)


@triton.jit
def load_entries(plane, place, inside, positions, START: tl.constexpr, F: tl.constexpr):
    """Of F entries at positions [LANES, 4] of a plane those from START on, see `registers`."""
    E: tl.constexpr = 16 if F - START >= 16 else 8 if F - START >= 8 else 1
    at = _entries_in_plane(plane, place, positions, START, E)
    x = tl.load(at, mask=tl.expand_dims(inside, 2), other=0.0)  # [LANES, 4, E]
    if START + E == F:
        return apart(x, E)
    else:
        return apart(x, E) + load_entries(plane, place, inside, positions, START + E, F)


@triton.jit
def store_entries(entries, plane, place, inside, positions, START: tl.constexpr, F: tl.constexpr):
    """The same back."""
    E: tl.constexpr = 16 if F - START >= 16 else 8 if F - START >= 8 else 1
    at = _entries_in_plane(plane, place, positions, START, E)
    tl.store(at, joined(entries, START, 1, E), mask=tl.expand_dims(inside, 2))
    if START + E < F:
        store_entries(entries, plane, place, inside, positions, START + E, F)


@triton.jit
def _entries_in_plane(plane, place, positions, START: tl.constexpr, E: tl.constexpr):
    entry = START + tl.arange(0, E)[None, None, :]
    return quads(plane, tl.expand_dims(place, 2) + entry * positions, 4)


@triton.jit
def entry_in_tensor(task, entry, D: tl.constexpr):
    """Offset of an entry of a pair of D x D, from the first one."""
    outer = tl.load(task + PAIR_AT).to(tl.int32)
    inner = tl.load(task + PAIR_AT + 1).to(tl.int32)
    return entry // D * outer + entry % D * inner


@triton.jit
def tile_in_tensor(task, first, positions, S: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a fold's entries 0 .. S - 1 at positions from `first` on, and what there is of it.

    Returns:
        [S, BLOCK] both.
    """
    offset, real = elements(task, first, positions, BLOCK // 4)
    k = tl.arange(0, S)
    entry = strided(k, task + FOLD_AT, FOLD_COUNT)
    mask = (k < tl.load(task + FOLD))[:, None] & tl.reshape(real, (BLOCK,))[None, :]
    return entry[:, None] + tl.reshape(offset, (BLOCK,))[None, :], mask


@triton.jit
def tile_in_plane(task, first, positions, plane, S: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the same in the plane, and what it has, where padding is inside."""
    k = tl.arange(0, S)[:, None]
    position = tl.reshape(in_plane(first, BLOCK // 4), (1, BLOCK))
    inside = tl.broadcast_to(in_use(first, positions, BLOCK // 4), (BLOCK // 4, 4))
    inside = tl.reshape(inside, (1, BLOCK))
    return quads(plane, k * positions + position, 4), (k < tl.load(task + FOLD)) & inside


@triton.jit
def fold_matrix(task, S: tl.constexpr):
    """The folded mode's matrix [S, S]."""
    k = tl.arange(0, S)
    return tl.load(floats(tl.load(task + MATRIX)) + k[:, None] * S + k[None, :])
