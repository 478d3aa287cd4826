"""How kernels read tables and strided tensors.

Addresses are 64 bits wide, offsets within a tensor 32: that halves the registers of a tile's
pointers, and a tensor of 2^30 elements or more is not served.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import DTYPES

BFLOAT16 = tl.constexpr(DTYPES["bfloat16"])
FLOAT32 = tl.constexpr(DTYPES["float32"])


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
    """Offset of elements of a strided tensor; `axes` holds size and stride, innermost first."""
    offset = tl.zeros_like(index)
    for axis in tl.static_range(COUNT):
        size = tl.load(axes + 2 * axis).to(tl.int32)
        offset += index % size * tl.load(axes + 2 * axis + 1).to(tl.int32)
        index = index // size
    return offset


@triton.jit
def load_float(address, offset, mask, dtype):
    """Elements of a float32, bfloat16 or float16 tensor in float32."""
    if dtype == FLOAT32:
        x = tl.load(address.to(tl.pointer_type(tl.float32)) + offset, mask=mask, other=0.0)
    elif dtype == BFLOAT16:
        brain = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + offset, mask=mask, other=0.0)
        x = brain.to(tl.float32)
    else:
        half = tl.load(address.to(tl.pointer_type(tl.float16)) + offset, mask=mask, other=0.0)
        x = half.to(tl.float32)
    return x


@triton.jit
def store_float(address, offset, x, mask, dtype):
    """The same back, rounded once."""
    if dtype == FLOAT32:
        tl.store(address.to(tl.pointer_type(tl.float32)) + offset, x, mask=mask)
    elif dtype == BFLOAT16:
        tl.store(
            address.to(tl.pointer_type(tl.bfloat16)) + offset,
            x.to(tl.bfloat16),
            mask=mask,
        )
    else:
        tl.store(
            address.to(tl.pointer_type(tl.float16)) + offset,
            x.to(tl.float16),
            mask=mask,
        )
