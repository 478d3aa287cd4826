"""A fold of two modes of D entries each in a lane's registers, four rows of it: 4 D D vectors.

`rows` is a tuple of vectors [LANES], one per row and entry: number `row * D * D + a * D + b`. They
come from and go to tiles [LANES, 4, E] of E entries, a power of two: 16, 8 and 1 make 25, 8 and 1
make 9. Few wide tiles, since Triton's compiler takes time for every access to memory.
"""

import triton
import triton.language as tl


@triton.jit
def apart(x, N: tl.constexpr):
    """[LANES, N] as N vectors [LANES], in order."""
    if N == 1:
        return (tl.reshape(x, (x.shape[0],)),)
    else:
        halves = tl.permute(tl.reshape(x, (x.shape[0], 2, N // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        return apart(left, N // 2) + apart(right, N // 2)


@triton.jit
def joined(vectors, FIRST: tl.constexpr, N: tl.constexpr):
    """N of the vectors [LANES], from number FIRST on, as [LANES, N]."""
    if N == 1:
        return tl.expand_dims(vectors[FIRST], 1)
    else:
        left = joined(vectors, FIRST, N // 2)
        right = joined(vectors, FIRST + N // 2, N // 2)
        halves = tl.permute(tl.join(left, right), (0, 2, 1))
        return tl.reshape(halves, (halves.shape[0], N))


@triton.jit
def tile_of(rows, F: tl.constexpr, START: tl.constexpr, E: tl.constexpr):
    """Of F entries a row, those from START on, [LANES, 4, E]."""
    chosen = ()
    for row in tl.static_range(4):
        for entry in tl.static_range(START, START + E):
            chosen = chosen + (rows[row * F + entry],)  # noqa: RUF005
    tile = joined(chosen, 0, 4 * E)
    return tl.reshape(tile, (tile.shape[0], 4, E))


@triton.jit
def rows_of(x, F: tl.constexpr):
    """The vectors of tiles of 16, 8 and 1 entries, or of 8 and 1, that `apart` has split."""
    rows = ()
    for row in tl.static_range(4):
        for entry in tl.static_range(F):
            if F == 25 and entry < 16:
                rows = rows + (x[row * 16 + entry],)  # noqa: RUF005
            elif entry < F - 1:
                rows = rows + (x[4 * (F - 9) + row * 8 + entry - (F - 9)],)  # noqa: RUF005
            else:
                rows = rows + (x[4 * entry + row],)  # noqa: RUF005
    return rows


@triton.jit
def rotated(rows, matrices, D: tl.constexpr, PITCH: tl.constexpr):
    """Both modes rotated, one after the other: out[a, b] = sum_{c, d} M0[a, c] M1[b, d] x[c, d].

    `matrices` holds M0 and M1 [D, PITCH], float32, one behind the other.
    """
    m = _matrix(matrices, D, PITCH)
    half = ()
    for row in tl.static_range(4):
        for a in tl.static_range(D):
            for b in tl.static_range(D):
                total = m[a * D] * rows[row * D * D + b]
                for c in tl.static_range(1, D):
                    total += m[a * D + c] * rows[row * D * D + c * D + b]
                half = half + (total,)  # noqa: RUF005
    m = _matrix(matrices + D * PITCH, D, PITCH)
    out = ()
    for row in tl.static_range(4):
        for a in tl.static_range(D):
            for b in tl.static_range(D):
                total = m[b * D] * half[row * D * D + a * D]
                for c in tl.static_range(1, D):
                    total += m[b * D + c] * half[row * D * D + a * D + c]
                out = out + (total,)  # noqa: RUF005
    return out


@triton.jit
def _matrix(at, D: tl.constexpr, PITCH: tl.constexpr):
    entries = ()
    for row in tl.static_range(D):
        for column in tl.static_range(D):
            entries = entries + (tl.load(at + row * PITCH + column),)  # noqa: RUF005
    return entries


@triton.jit
def gram_sums(rows, D: tl.constexpr, N: tl.constexpr):
    """Lower triangles of both modes' Gram matrices over a lane's rows, and zeros: N vectors.

    Number `a (a + 1) / 2 + b` is sum over rows and d of x[a, d] x[b, d]; the second mode's follow.
    """
    sums = ()
    for mode in tl.static_range(2):
        for a in tl.static_range(D):
            for b in tl.static_range(a + 1):
                total = tl.zeros_like(rows[0])
                for row in tl.static_range(4):
                    for d in tl.static_range(D):
                        if mode == 0:
                            total += rows[row * D * D + a * D + d] * rows[row * D * D + b * D + d]
                        else:
                            total += rows[row * D * D + d * D + a] * rows[row * D * D + d * D + b]
                sums = sums + (total,)  # noqa: RUF005
    for _ in tl.static_range(N - D * (D + 1)):
        sums = sums + (tl.zeros_like(rows[0]),)  # noqa: RUF005
    return sums
