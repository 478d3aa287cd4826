"""Directions without gradients do not move, and what rounds otherwise ends in the same place.

Gradients span a subspace that no axis of the tensor follows: what moves at right angles to it is
rounding. A span that single gradients fill is known from the first call on; a first basis of others
has columns partly outside of it, in exact arithmetic as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import tolerances
import torch
from tf32 import TorchProductsInTf32x3

from soap_fast import SOAP, extension, precondition
from soap_fast.backends.triton.backend import interpreted

SOAKING = "SOAP_FAST_EXAMPLES" in os.environ
NATIVE = "native" if extension.available() else "eager"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Rows and columns of a matrix, and the rank of what its rows span.
SPANS = [(8, 16, 3), (24, 16, 12), (40, 24, 1)]
MORE_SPANS = [(8, 16, 1), (32, 16, 8), (48, 32, 31), (96, 128, 40), (160, 80, 79), (16, 640, 1)]
GROWTHS: dict[str, Callable[[int], float]] = {
    "steady": lambda call: 1.0,
    "from call 50 on": lambda call: 1e4 if call >= 50 else 1.0,
    "from call 3 on": lambda call: 30.0 if call >= 3 else 1.0,
    "every 7th call": lambda call: 1e3 if call % 7 == 6 else 1.0,
}


def orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:  # [size, size] float64
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def moved_outside(
    rows: int,
    columns: int,
    rank: int,
    calls: int,
    *,
    growth: str = "steady",
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
    **options: object,
) -> float:
    """What moves at right angles to the span, over what moves within it."""
    generator = torch.Generator().manual_seed(0)
    basis = orthogonal(columns, generator)
    shape = (columns, rows) if transposed else (rows, columns)
    param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = SOAP([param], lr=1e-2, weight_decay=0.0, **options)
    for call in range(calls):
        inputs = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        grad = scale * GROWTHS[growth](call) * inputs @ basis[:, :rank].T
        param.grad = (grad.T if transposed else grad).to(dtype).contiguous()
        optimizer.step()
    weights = param.detach().double().T if transposed else param.detach().double()
    outside, within = ((weights @ part).norm() for part in (basis[:, rank:], basis[:, :rank]))
    assert within > 1e-3 * calls**0.5
    return float(outside / within)


@pytest.mark.parametrize("transposed", [False, True], ids=["inputs", "outputs"])
@pytest.mark.parametrize("backend", ["eager", NATIVE])
@pytest.mark.parametrize("span", SPANS, ids=str)
def test_nothing_moves_out_of_a_span(span, backend, transposed, one_thread):
    assert (
        moved_outside(*span, 60, backend=backend, transposed=transposed) <= tolerances.OUT_OF_SPAN
    )


@pytest.mark.parametrize("growth", [name for name in GROWTHS if name != "steady"])
def test_nothing_moves_out_of_a_span_when_gradients_grow(growth, one_thread):
    found = moved_outside(8, 16, 3, 80, backend=NATIVE, growth=growth)
    assert found <= tolerances.OUT_OF_SPAN_GROWING


def test_nothing_moves_out_of_a_span_in_other_arithmetic(one_thread):
    found = moved_outside(8, 16, 3, 60, dtype=torch.float64, backend="eager")
    assert found <= tolerances.OUT_OF_SPAN_64
    with TorchProductsInTf32x3():
        assert moved_outside(24, 16, 12, 60, backend="eager") <= tolerances.OUT_OF_SPAN


@pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted()),
    reason="no GPU, and TRITON_INTERPRET is not set",
)
def test_nothing_moves_out_of_a_span_by_triton(one_thread):
    assert moved_outside(8, 16, 3, 23, backend="triton") <= tolerances.OUT_OF_SPAN


@pytest.mark.soak
@pytest.mark.skipif(not SOAKING, reason="takes minutes: make soak runs it")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e12])
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("backend", ["eager", NATIVE])
@pytest.mark.parametrize("span", SPANS + MORE_SPANS, ids=str)
def test_nothing_moves_out_of_a_span_in_a_thousand_calls(span, backend, growth, scale, one_thread):
    growing = growth != "steady"
    allowed = tolerances.OUT_OF_SPAN_GROWING if growing else tolerances.OUT_OF_SPAN
    for transposed in (False, True):
        kwargs = {"growth": growth, "scale": scale, "transposed": transposed}
        for schedule in ("periodic", "staggered"):
            found = moved_outside(*span, 1000, backend=backend, refresh_schedule=schedule, **kwargs)
            assert found <= allowed, (transposed, schedule)


def gradients_of_low_rank(
    rows: int, columns: int, rank: int, calls: int, noise: float
) -> Iterator[torch.Tensor]:  # [rows, columns] float32
    """Every one of full rank within its spans, whose eigenvalues lie a factor of four apart."""
    generator, other = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    left, right = (orthogonal(size, generator)[:, :rank] for size in (rows, columns))
    sizes = 2.0 ** -torch.arange(rank, dtype=torch.float64)
    around = 0.1 * (sizes[:, None] * sizes).sqrt()
    for _ in range(calls):
        normal = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
        grad = left @ (sizes.diag() + around * normal) @ right.T
        error = torch.randn(rows, columns, generator=other, dtype=torch.float64)
        yield (grad * (1 + noise * error)).float()


def trained(gradients: Iterator[torch.Tensor], **options: object) -> tuple[torch.Tensor, SOAP]:
    given = list(gradients)
    param = torch.nn.Parameter(torch.zeros(given[0].shape))
    optimizer = SOAP([param], lr=1e-2, weight_decay=0.0, **options)
    for grad in given:
        param.grad = grad
        optimizer.step()
    return param.detach().double(), optimizer


@pytest.mark.parametrize("backend", ["eager", NATIVE])
@pytest.mark.parametrize("span", [(8, 16, 3), (16, 16, 5), (24, 20, 1)], ids=str)
def test_gradients_of_low_rank_that_round_otherwise_end_in_the_same_place(span, backend):
    calls = 1000 if SOAKING else 100
    ends = [
        trained(gradients_of_low_rank(*span, calls, noise), backend=backend)[0]
        for noise in (0.0, 1e-7)
    ]
    assert (ends[0] - ends[1]).norm() <= tolerances.ROUNDED_OTHERWISE * ends[0].norm()


def test_what_is_held_back_is_the_same_on_every_backend():
    backends = ["eager", NATIVE]
    if interpreted() and not torch.cuda.is_available():
        backends.append("triton")
    for backend in backends:
        _, optimizer = trained(gradients_of_low_rank(7, 9, 2, 14, 0.0), backend=backend)
        counts = optimizer.stats()["held_back"]
        assert list(counts.values()) == [7 * 9 - 2 * 2], backend
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.stats()["held_back"] == counts


def test_nothing_is_held_back_of_gradients_of_full_rank():
    def gradients():
        generator = torch.Generator().manual_seed(0)
        for _ in range(25):
            yield torch.randn(12, 10, generator=generator)

    for backend in ("eager", NATIVE):
        with_floor, optimizer = trained(gradients(), backend=backend)
        without, _ = trained(gradients(), backend=backend, noise_floor=0)
        assert torch.equal(with_floor, without)
        assert list(optimizer.stats()["held_back"].values()) == [0]


def test_a_floor_of_its_own_for_each_group_takes_effect_at_once():
    params = [torch.nn.Parameter(torch.zeros(6, 5)) for _ in range(3)]
    vector = torch.nn.Parameter(torch.zeros(7))
    for backend in ("eager", NATIVE):
        groups = [
            {"params": params[:1], "noise_floor": 0},
            {"params": [params[1], vector], "noise_floor": 1e9},  # nothing rotates a vector
            {"params": params[2:]},
        ]
        optimizer = SOAP(groups, weight_decay=0.0, backend=backend)
        for call in range(3):
            generator = torch.Generator().manual_seed(call)
            for param in (*params, vector):
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        assert list(optimizer.stats()["held_back"].values()) == [0, 30, 0, 0]
        optimizer.param_groups[1]["noise_floor"] = 1.0
        optimizer.step()
        assert list(optimizer.stats()["held_back"].values()) == [0, 0, 0, 0]


@pytest.mark.parametrize("momentum", [False, True])
def test_precondition_follows_the_floor(momentum):
    _, optimizer = trained(gradients_of_low_rank(8, 16, 3, 30, 0.0), backend=NATIVE)
    generator = torch.Generator().manual_seed(0)
    left, right = orthogonal(8, generator), orthogonal(16, generator)
    outside = left[:, 3:] @ torch.ones(5, 13, dtype=torch.float64) @ right[:, 3:].T
    within = left[:, :3] @ torch.ones(3, 3, dtype=torch.float64) @ right[:, :3].T
    (found,) = precondition(optimizer, [within.float()], momentum=momentum)
    assert (found.double() @ right[:, 3:]).norm() <= tolerances.OUT_OF_SPAN * found.norm()
    if not momentum:  # with it, this gradient would be averaged into the factors
        (found,) = precondition(optimizer, [outside.float()])
        (inside,) = precondition(optimizer, [within.float()])
        assert found.norm() <= tolerances.OUT_OF_SPAN * inside.norm()
