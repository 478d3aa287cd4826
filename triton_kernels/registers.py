"""A fold of two modes of D entries each in a lane's registers, with four rows of it.

`entries` is a tuple of D * D tensors [LANES, 4], number `a * D + b`. They come from and go to tiles
[LANES, 4, E] of E entries, a power of two: 16, 8 and 1 make 25, 8 and 1 make 9. Tensors are few
and wide, since what Triton's compiler takes grows with accesses to memory times operations.
"""

import triton
import triton.language as tl


@triton.jit
def apart(x, N: tl.constexpr):
    """[.., N] as N tensors [..], in order."""
    if len(x.shape) == 2:
        if N == 1:
            return (tl.reshape(x, (x.shape[0],)),)
        else:
            evens, odds = tl.split(tl.reshape(x, (x.shape[0], N // 2, 2)))
            return _interleaved(apart(evens, N // 2), apart(odds, N // 2), N)
    else:
        if N == 1:
            return (tl.reshape(x, (x.shape[0], x.shape[1])),)
        else:
            evens, odds = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], N // 2, 2)))
            return _interleaved(apart(evens, N // 2), apart(odds, N // 2), N)


@triton.jit
def _interleaved(evens, odds, N: tl.constexpr):
    both = ()
    for number in tl.static_range(N // 2):
        both = both + (evens[number], odds[number])  # noqa: RUF005
    return both


@triton.jit
def joined(tensors, FIRST: tl.constexpr, STEP: tl.constexpr, N: tl.constexpr):
    """N of the tensors [..], from number FIRST on and STEP apart, as [.., N]."""
    if N == 1:
        return tl.expand_dims(tensors[FIRST], len(tensors[FIRST].shape))
    else:
        evens = joined(tensors, FIRST, 2 * STEP, N // 2)
        odds = joined(tensors, FIRST + STEP, 2 * STEP, N // 2)
        both = tl.join(evens, odds)
        if len(both.shape) == 3:
            return tl.reshape(both, (both.shape[0], N))
        else:
            return tl.reshape(both, (both.shape[0], both.shape[1], N))


@triton.jit
def entries_of(run, F: tl.constexpr):
    """Of what four rows hold in a row, 4 F vectors [LANES]."""
    entries = ()
    for entry in tl.static_range(F):
        entries = entries + (joined(run, entry, F, 4),)  # noqa: RUF005
    return entries


@triton.jit
def run_of(entries, F: tl.constexpr):
    """The vectors back, row by row."""
    found = ()
    for entry in tl.static_range(F):
        found = found + apart(entries[entry], 4)
    run = ()
    for row in tl.static_range(4):
        for entry in tl.static_range(F):
            run = run + (found[4 * entry + row],)  # noqa: RUF005
    return run


@triton.jit
def rotated(entries, matrices, D: tl.constexpr, PITCH: tl.constexpr):
    """Both modes rotated, one after the other: out[a, b] = sum_{c, d} M0[a, c] M1[b, d] x[c, d].

    `matrices` holds M0 and M1 [D, PITCH], float32, one behind the other.
    """
    m = _matrix(matrices, D, PITCH)
    half = ()
    for b in tl.static_range(D):  # column by column, each of them in its own place
        for a in tl.static_range(D):
            total = m[a * D] * entries[b]
            for c in tl.static_range(1, D):
                total += m[a * D + c] * entries[c * D + b]
            half = half + (total,)  # noqa: RUF005
    m = _matrix(matrices + D * PITCH, D, PITCH)
    out = ()
    for a in tl.static_range(D):
        for b in tl.static_range(D):
            total = m[b * D] * half[a]
            for c in tl.static_range(1, D):
                total += m[b * D + c] * half[c * D + a]
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
def gram_sums(entries, D: tl.constexpr, N: tl.constexpr):
    """Lower triangles of both modes' Gram matrices over all rows, and zeros: [N].

    Number `a (a + 1) / 2 + b` is sum over rows and d of x[a, d] x[b, d]; the second mode's follow.
    """
    sums = ()
    for mode in tl.static_range(2):
        for a in tl.static_range(D):
            for b in tl.static_range(a + 1):
                total = tl.zeros_like(entries[0])
                for d in tl.static_range(D):
                    if mode == 0:
                        total += entries[a * D + d] * entries[b * D + d]
                    else:
                        total += entries[d * D + a] * entries[d * D + b]
                sums = sums + (tl.sum(total, 1),)  # noqa: RUF005
    for _ in tl.static_range(N - D * (D + 1)):
        sums = sums + (tl.zeros_like(sums[0]),)  # noqa: RUF005
    return tl.sum(joined(sums, 0, 1, N), 0)
