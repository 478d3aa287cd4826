"""The split of tf32x3, which the interpreter leaves out elsewhere: its products are whole."""

from __future__ import annotations

import sys

import pytest
import torch
from tf32 import product_error

from soap_fast.backends.triton.backend import interpreted

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not interpreted(), reason="TRITON_INTERPRET is not set"
)


@pytest.fixture
def product(monkeypatch):
    """a b^T of matrices [64, 32], split as on a GPU."""
    import triton
    import triton.language as tl

    from soap_fast.triton_kernels import product as module

    monkeypatch.setattr(module, "WHOLE", tl.constexpr(False))
    add_product = module.add_product

    @triton.jit
    def kernel(a, b, out):
        i = tl.arange(0, 64)
        at = i[:, None] * 32 + tl.arange(0, 32)[None, :]
        acc = tl.zeros((64, 64), tl.float32)
        acc = add_product(acc, tl.load(a + at), tl.load(b + at), "tf32x3", False)
        tl.store(out + i[:, None] * 64 + i[None, :], acc)

    def run(a, b):
        out = torch.empty(64, 64)
        kernel.fn.__globals__.update(add_product=add_product, tl=tl)
        kernel[(1,)](a, b, out)
        return out

    return run


def test_the_three_products_are_nearly_float32(product):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 32, generator=generator) for _ in range(2))
    exact, size = a.double() @ b.double().T, a.double().abs() @ b.double().abs().T
    errors = ((product(a, b) - exact).abs() / size).flatten()
    assert errors.max() <= product_error("tf32x3", 32)
    assert errors.max() > 2**-24  # what is left out is there to be seen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(product, value):
    a, b = torch.ones(64, 32), torch.ones(64, 32)
    a[3, 5] = b[7, 9] = value
    found = product(a, b).isfinite()
    expected = torch.ones(64, 64, dtype=torch.bool)
    expected[3] = expected[:, 7] = False
    assert torch.equal(found, expected)
