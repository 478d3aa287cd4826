"""How kernels read tables and strided tensors.

Addresses are 64 bits wide, offsets within a tensor 32: that halves the registers of a tile's
pointers, and a tensor of 2^30 elements or more is not served.
"""

import triton
import triton.language as tl


@triton.jit
def floats(address):
    """A float32 pointer from an address in a table."""
    return address.to(tl.pointer_type(tl.float32))


@triton.jit
def operand(address):
    """The same where rows of products begin: 16 bytes can be loaded at once."""
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def strided(index, axes, COUNT: tl.constexpr):
    """Offset of elements of a strided tensor; `axes` holds size and stride, innermost first.

    The first axis of size 0 ends them. One axis divides nothing.
    """
    offset = index * tl.load(axes + 1).to(tl.int32)
    for axis in range(1, COUNT):
        if tl.load(axes + 2 * axis) != 0:
            # What counts beyond the axis before belongs to this one.
            size = tl.load(axes + 2 * axis - 2).to(tl.int32)
            beyond = index // size
            offset += beyond * (
                tl.load(axes + 2 * axis + 1).to(tl.int32)
                - size * tl.load(axes + 2 * axis - 1).to(tl.int32)
            )
            index = beyond
    return offset
