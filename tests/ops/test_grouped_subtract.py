"""grouped_matmul_ with SUBTRACT, on operands as panels of a refresh have them."""

from __future__ import annotations

import pytest
import tolerances
import torch
from streams import needs_native
from tf32 import products_in_tf32x3

from soap_fast.step.grouped_matmul import SUBTRACT, grouped_matmul_eager, grouped_matmul_native

OPS = [
    pytest.param(grouped_matmul_eager, id="eager"),
    pytest.param(grouped_matmul_native, id="native", marks=needs_native),
]


def panel(d, first, width, dtype):
    """A panel of a solve: x[:, J:] -= x[:, :J] l[J:, :J]ᵀ, all of x and of l in one matrix each."""
    generator = torch.Generator().manual_seed(d)
    x, l = (torch.randn(3, d, d, dtype=dtype, generator=generator) for _ in range(2))  # noqa: E741
    columns = slice(first, first + width)
    return x, x[:, :, :first], l[:, columns, :first].mT, x[:, :, columns]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_taken_from_what_is_there(op, dtype):
    panels = [panel(d, first, width, dtype) for d, first, width in ((9, 4, 3), (70, 64, 6))]
    before = [x.clone() for x, *_ in panels]
    groups = [list(of) for of in zip(*(views for _, *views in panels), strict=True)]
    op(*groups, SUBTRACT)
    for (x, a, b, out), old in zip(panels, before, strict=True):
        first, end = a.shape[2], a.shape[2] + out.shape[2]
        exact = old[:, :, first:end].double() - a.double() @ b.double()
        magnitude = old[:, :, first:end].double().abs() + a.double().abs() @ b.double().abs()
        allowed = tolerances.sums(dtype, first + 1) * magnitude
        assert ((out - exact).abs() <= allowed).all()
        assert torch.equal(x[:, :, :first], old[:, :, :first])
        assert torch.equal(x[:, :, end:], old[:, :, end:])


@needs_native
def test_emulated_tensor_cores_subtract_too():
    x, a, b, out = panel(70, 64, 6, torch.float32)
    exact = x[:, :, 64:].double() - a.double() @ b.double()
    with products_in_tf32x3():
        grouped_matmul_native([a], [b], [out], SUBTRACT)
    assert (out - exact).abs().max() < tolerances.TF32X3 * (a.abs() @ b.abs()).max()


def test_what_the_kernel_does_not_serve_is_subtracted_by_torch():
    from soap_fast.backends.triton.launch.launcher import TritonLauncher
    from soap_fast.backends.triton.ops.grouped_matmul import grouped_matmul_triton

    x, a, b, out = panel(9, 4, 3, torch.float64)
    expected = out - a @ b
    grouped_matmul_triton([a], [b], [out], TritonLauncher(1), "tf32x3", SUBTRACT)
    torch.testing.assert_close(out, expected, **tolerances.EXACT_64)
    assert out.data_ptr() == x[:, :, 4:].data_ptr()
