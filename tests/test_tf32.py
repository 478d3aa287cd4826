"""Emulated tensor cores: within the bounds that kernels are tested with, and good for a step."""

from __future__ import annotations

import golden
import pytest
import tolerances
import torch
from test_golden import run
from tf32 import EMULATED, PRECISIONS, TorchProductsInTf32x3, product_error

CALLS = 23  # of a recorded trajectory: first bases, twenty steps and two refreshes


def operands(kind: str, m: int, n: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """a [m, k] and b [k, n] float32."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((m, k), (k, n)))
    if kind == "positive":  # sums grow as fast as they can
        a, b = a.abs(), b.abs()
    if kind == "wide":  # magnitudes over 26 powers of ten
        a, b = a * (6 * torch.randn_like(a)).exp(), b * (6 * torch.randn_like(b)).exp()
    if kind == "cancelling":  # the second half of every sum takes back the first
        half = k // 2
        a[:, half : 2 * half], b[half : 2 * half] = a[:, :half], -b[:half]
    if kind == "next to a tie":  # all that tf32 drops has the same sign and is as large as can be
        a, b = a.sign() * (1 + 2**-11 + 2**-22 - 2**-23), b.sign() * (1 + 2**-10 - 2**-23)
    if kind == "basis":
        a = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64)).Q[:m]
    return a.float(), b.float()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "kind", ["normal", "positive", "wide", "cancelling", "next to a tie", "basis"]
)
def test_emulated_products_keep_the_bound(kind, precision):
    for seed, k in enumerate((1, 2, 3, 9, 25, 32, 100, 320, 1920)):
        a, b = operands(kind, min(40, k), 48, k, seed)
        error = (EMULATED[precision](a, b).double() - a.double() @ b.double()).abs()
        bound = product_error(precision, k) * (a.double().abs() @ b.double().abs())
        assert (error <= bound).all(), f"k = {k}: {(error / bound).max():.2f} of the bound"


def test_bounds_tell_precisions_apart():
    """A product in less precision than was asked for does not pass for small sums."""
    for k in (9, 40, 100):
        a, b = operands("normal", 40, 48, k, seed=k)
        magnitude = a.double().abs() @ b.double().abs()
        error = (EMULATED["tf32"](a, b).double() - a.double() @ b.double()).abs() / magnitude
        assert error.max() > 4 * product_error("tf32x3", k)
        assert error.max() > 4 * product_error("ieee", k)


@pytest.mark.parametrize("case", golden.CASES)
def test_a_step_in_tf32x3_follows_the_recorded_trajectories(case):
    trace = golden.load(case)
    with TorchProductsInTf32x3() as products:
        for call, params, _ in run(trace, backend="eager"):
            for i, param in enumerate(params):
                moved = (trace.params[call - 1][i] - trace.init[i]).abs().max()
                error = (param - trace.params[call - 1][i]).abs().max()
                assert error <= tolerances.TRACE * moved, f"call {call}, parameter {i}"
            if call == CALLS:
                break
    assert products.count > CALLS
