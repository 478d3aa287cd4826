"""Operators that are computed by NumPy alone give what Triton's interpreter gives, bit for bit."""

from __future__ import annotations

import operator
from itertools import product

import pytest
import torch
from streams import needs_interpreter

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = needs_interpreter
SIZE = 8
OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_,
    "or": operator.or_, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
DTYPES = [torch.int32, torch.int64, torch.float32, torch.float64, torch.bool, torch.float16]


@triton.jit
def computed(x, y, OP: tl.constexpr):
    if OP == "add":
        return x + y
    elif OP == "sub":
        return x - y
    elif OP == "mul":
        return x * y
    elif OP == "and":
        return x & y
    elif OP == "or":
        return x | y
    elif OP == "lt":
        return x < y
    elif OP == "le":
        return x <= y
    elif OP == "gt":
        return x > y
    elif OP == "ge":
        return x >= y
    elif OP == "eq":
        return x == y
    return x != y


@triton.jit
def of_all_shapes(x, y, outer, inner, one, numbers, OP: tl.constexpr, SIZE: tl.constexpr):
    along = tl.arange(0, SIZE)
    places = along[:, None] * SIZE + along[None, :]
    a, b = tl.load(x + along), tl.load(y + along)
    tl.store(outer + places, computed(a[:, None], b[None, :], OP))
    tl.store(inner + along, computed(a, tl.load(y + 1), OP))
    tl.store(one, computed(tl.load(x + 2), tl.load(y + 3), OP))
    tl.store(numbers + along, computed(a, 3, OP))


def values(dtype: torch.dtype) -> torch.Tensor:  # [SIZE]
    if dtype.is_floating_point:
        return torch.tensor([0.0, -0.0, 1.5, -2.25, 3.0, torch.inf, torch.nan, 1e-3], dtype=dtype)
    if dtype == torch.bool:
        return torch.tensor([True, False] * 4)
    ends = torch.iinfo(dtype)
    return torch.tensor([0, 1, -1, 3, -7, ends.max, ends.min, 40], dtype=dtype)


def fits(name: str, one: torch.dtype, other: torch.dtype) -> bool:
    """Not what Triton refuses, or promotes in another way than torch."""
    if name in ("and", "or"):
        return not one.is_floating_point and not other.is_floating_point
    return torch.bool not in (one, other) and one.is_floating_point == other.is_floating_point


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [case for case in product(OPERATORS, DTYPES, DTYPES) if fits(*case)],
)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
def test_an_operator_is_torchs_the_first_time_and_later(name, one, other):
    x, y = values(one), values(other).flip(0)
    compute = OPERATORS[name]
    expected = [
        compute(x[:, None], y), compute(x, y[1:2]), compute(x[2:3], y[3:4]),
        compute(x, 3) if one != torch.bool else compute(x.int(), 3),
    ]  # fmt: skip
    for _ in range(3):
        found = list(map(torch.empty_like, expected))
        of_all_shapes[(1,)](x, y, *found, name, SIZE)
        for ours, torchs in zip(found, expected, strict=True):
            assert torch.equal(ours.isnan(), torchs.isnan())
            assert torch.equal(ours.nan_to_num(), torchs.nan_to_num())


@triton.jit
def loaded(x, chosen, beyond, found, SIZE: tl.constexpr):
    along = tl.arange(0, SIZE)
    places = x + along[:, None] * SIZE + along[None, :]
    some = tl.load(chosen + along) != 0
    to = found + along[:, None] * SIZE + along[None, :]
    tl.store(to, tl.load(places))
    tl.store(to + SIZE * SIZE, tl.load(places, some[:, None], 2.0))
    tl.store(to + 2 * SIZE * SIZE, tl.load(places, some[None, :], tl.load(beyond + along)[:, None]))
    tl.store(to + 3 * SIZE * SIZE, tl.load(x + along, some, other=0.0)[:, None])
    tl.store(to + 4 * SIZE * SIZE, tl.load(x, tl.load(chosen) != 0, other=-1.0))


def test_loads_are_masked_and_broadcast_the_first_time_and_later():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, SIZE, generator=generator)
    beyond = torch.randn(SIZE, generator=generator)
    some = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.int32)
    rows, columns = some.bool()[:, None], some.bool()
    expected = torch.stack([
        x, x.where(rows, 2.0), x.where(columns, beyond[:, None]),
        x[0].where(some.bool(), 0.0)[:, None].expand(SIZE, SIZE), torch.full_like(x, -1.0),
    ])  # fmt: skip
    for _ in range(3):
        found = torch.zeros_like(expected)
        loaded[(1,)](x, some, beyond, found, SIZE)
        assert torch.equal(found, expected)


@triton.jit
def cast(x, found, SIZE: tl.constexpr):
    along = tl.arange(0, SIZE)
    tl.store(found + along, tl.load(x + along).to(found.dtype.element_ty))


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_cast_is_torchs_the_first_time_and_later(one, other):
    x = values(one) if not one.is_floating_point else values(one)[:5]
    x = torch.cat([x, x[: SIZE - len(x)]])
    for _ in range(3):
        found = torch.empty(SIZE, dtype=other)
        cast[(1,)](x, found, SIZE)
        assert torch.equal(found, x.to(other))


def test_pointers_come_from_addresses():
    x, found = torch.arange(8.0), torch.zeros(8)
    addresses = torch.tensor([x.data_ptr(), x[4:].data_ptr()])
    for _ in range(3):
        by_address[(1,)](addresses, found, 4)
        assert torch.equal(found, x)


@triton.jit
def by_address(addresses, found, SIZE: tl.constexpr):
    along = tl.arange(0, SIZE)
    for part in range(2):
        start = tl.load(addresses + part).to(tl.pointer_type(tl.float32))
        tl.store(found + part * SIZE + along, tl.load(start + along))


def test_triton_is_asked_once(monkeypatch):
    """And for what is no ufunc, each time."""
    from triton.runtime.interpreter import TritonSemantic

    asked = []
    for name in ("add", "less_than"):
        work = getattr(TritonSemantic, name)
        monkeypatch.setattr(
            TritonSemantic, name, lambda *args, work=work: (asked.append(work), work(*args))[1]
        )
    x = values(torch.float32)
    for dtype, expected in ((torch.float32, 1), (torch.float16, 3)):
        for _ in range(3):
            cast_and_compared[(1,)](x.to(dtype), torch.empty(SIZE), SIZE)
        assert [work.__name__ for work in asked].count("less_than") == expected
        asked.clear()


@triton.jit
def cast_and_compared(x, found, SIZE: tl.constexpr):
    along = tl.arange(0, SIZE)
    tl.store(found + along, (tl.load(x + along) < 0.125).to(tl.float32))
