"""Weights that have had no gradient stay where they are, to the bit, and so do their moments."""

from __future__ import annotations

import os
from math import prod

import pytest
import tolerances
import torch
from streams import needs_native

from soap_fast import SOAP

SOAK = "SOAP_FAST_EXAMPLES" in os.environ  # `make soak`
CALLS, JOINED = 10, 7

# A shape, and by axis the indices that have no gradient; None: no index of any axis has one.
CASES: dict[str, tuple[tuple[int, ...], dict[int, list[int]] | None]] = {
    "1-D": ((9,), {0: [0, 4]}),
    "a row": ((7, 5), {0: [3]}),
    "a column": ((6, 12), {1: [0]}),
    "rows and columns": ((20, 14), {0: [0, 7, 19], 1: [2, 3]}),
    "all but one": ((9, 6), {0: [*range(8)], 1: [1, 2, 3, 4, 5]}),
    "everything": ((8, 6), None),
    "3-D": ((4, 6, 5), {1: [0, 5], 2: [2]}),
    "a plane of a kernel": ((6, 4, 3, 3), {0: [1], 2: [0]}),
    "both axes of a kernel": ((9, 5, 3, 3), {1: [4], 2: [1], 3: [0, 2]}),
    "5-D": ((3, 4, 2, 3, 3), {0: [2], 3: [1], 4: [0]}),
}
OPTIONS = {
    "periodic": {"precondition_frequency": 2},
    "staggered": {"precondition_frequency": 3, "refresh_schedule": "staggered"},
    "1-D factors": {"precondition_1d": True, "precondition_frequency": 2},
    "merged": {"merge_dims": True, "max_precond_dim": 40, "precondition_frequency": 2},
    "normalised": {"normalize_grads": True, "precondition_frequency": 2},
    "every step": {"precondition_frequency": 1, "correct_bias": False},
}
SCALES = [1e-20, 1.0, 1e15] if SOAK else [1.0]
BACKENDS = ["eager", pytest.param("native", marks=needs_native)]


def without_gradient(shape: tuple[int, ...], dead: dict[int, list[int]] | None) -> torch.Tensor:
    """[shape] bool."""
    mask = torch.full(shape, dead is None)
    for axis, indices in (dead or {}).items():
        mask.index_fill_(axis, torch.tensor(indices), True)
    return mask


def live_elements(shape: tuple[int, ...], dead: dict[int, list[int]] | None) -> int:
    if dead is None:
        return 0
    return prod(size - len(dead.get(axis, ())) for axis, size in enumerate(shape))


def check_steps(
    names, backend: str, options: dict, scale: float, joined: int, calls: int = CALLS
) -> None:
    """All cases in one optimizer, whose gradients are whole from call number `joined` on."""
    generator = torch.Generator().manual_seed(0)
    shapes = [CASES[name] for name in names]
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s, _ in shapes]
    masks = [without_gradient(*case) for case in shapes]
    begun = [p.detach().clone() for p in params]
    optimizer = SOAP(params, lr=1e-2, weight_decay=0.0, backend=backend, **options)
    for call in range(1, calls + 1):
        for p, mask in zip(params, masks, strict=True):
            p.grad = torch.randn(p.shape, generator=generator) * scale
            if call < joined:
                p.grad[mask] = 0
        optimizer.step()
        if call >= joined:
            continue
        for name, p, q, mask in zip(names, params, begun, masks, strict=True):
            assert torch.equal(p[mask], q[mask]), (name, call)
            for moment in (optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]):
                assert moment.count_nonzero() <= live_elements(*CASES[name]), (name, call)
            factors = [k for k in optimizer.state[p]["GG"] if k is not None]
            if prod(len(k) for k in factors) == p.numel():  # each mode has one
                rows = prod(int(k.any(1).sum()) for k in factors)
                assert rows == live_elements(*CASES[name]), (name, call)
    for name, p, q, mask in zip(names, params, begun, masks, strict=True):
        moved = p.detach() != q
        assert p.isfinite().all(), name
        if scale < 1e-6:  # beside eps a step is lost in the rounding of the weight
            continue
        assert moved[~mask].all(), name
        assert moved[mask].all() == (joined <= calls) or not mask.any(), name


@pytest.mark.parametrize("joined", [JOINED, CALLS + 1], ids=["until later", "for ever"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_without_gradients_stay(one_thread, backend, options, scale, joined):
    check_steps(list(CASES), backend, OPTIONS[options], scale, joined)


@pytest.mark.parametrize("options", OPTIONS if SOAK else ["periodic"])
def test_under_interpreted_kernels(one_thread, options):
    pytest.importorskip("triton")
    if SOAK:
        check_steps(list(CASES), "triton", OPTIONS[options], 1.0, JOINED)
    check_steps(["a plane of a kernel", "everything"], "triton", OPTIONS[options], 1.0, 4, calls=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_decay_applies_all_the_same(one_thread, backend):
    p = torch.nn.Parameter(torch.ones(6, 4))
    optimizer = SOAP([p], lr=0.1, weight_decay=0.5, precondition_frequency=2, backend=backend)
    for _ in range(5):  # the first call steps nothing
        p.grad = torch.ones(6, 4)
        p.grad[2] = 0
        optimizer.step()
    torch.testing.assert_close(
        p[2].detach(), torch.full((4,), 0.95**4), rtol=tolerances.decays(4), atol=0
    )


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
def test_no_first_moment_is_carried_where_the_second_is_zero(one_thread, backend):
    """As a basis of an old checkpoint may ask for: divided by eps it would be a huge step."""
    if backend == "triton":
        pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(10, 6, 3, 3, generator=generator))
    optimizer = SOAP([p], precondition_frequency=2, backend=backend)
    for _ in range(2):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    state = optimizer.state[p]
    state["exp_avg"].copy_(torch.randn(p.shape, generator=generator))
    state["exp_avg_sq"][3:5] = 0
    state["exp_avg_sq"][:, 2] = 0
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert state["refreshes"][0] > 0
    empty = state["exp_avg_sq"] == 0
    assert empty.sum() == p.numel() - 8 * 5 * 9
    assert not state["exp_avg"][empty].any()
    assert state["exp_avg"][~empty].all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_with_gradients_now_and_then_move_as_in_float64(one_thread, backend, scale):
    """Factors have full rank and eigenvalues far apart, so that rounding alone moves nothing."""
    sizes = 1.5 ** -torch.arange(8, dtype=torch.float64)
    around = 0.1 * (sizes[:, None] * sizes).sqrt()
    ends = []
    for dtype, chosen in ((torch.float64, "eager"), (torch.float32, backend)):
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        optimizer = SOAP([p], lr=1e-2, weight_decay=0.0, backend=chosen)
        for call in range(60):
            normal = torch.randn(8, 8, generator=generator, dtype=torch.float64)
            grad = scale * (sizes.diag() + around * normal)
            if call % 5:
                grad[:, 2] = grad[6] = 0
            p.grad = grad.to(dtype)
            optimizer.step()
        ends.append(p.detach().double())
    for part in (slice(None), (slice(None), 2), 6):
        assert (ends[0][part] - ends[1][part]).norm() <= tolerances.SEPARATED * ends[0][part].norm()
