"""grouped_matmul_: batched products of many sizes, and that another kernel may take them over."""

from __future__ import annotations

import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import needs_native
from tf32 import matmul_tf32x3, products_in_tf32x3

from soap_fast.backends.triton.backend import interpreted
from soap_fast.step.grouped_matmul import (
    GROUP_COLUMNS,
    LEFT_UPPER,
    RIGHT_LOWER,
    ROUNDED,
    SUBTRACT,
    SYMMETRIC,
    grouped_matmul_as_tensors,
    grouped_matmul_at,
    grouped_matmul_eager,
    grouped_matmul_native,
    groups_of,
    multiply,
)
from soap_fast.triton_kernels.columns import GROUPED_CLASSES, GROUPED_MATMUL, GROUPED_NARROW


def grouped_matmul_interpreted(a, b, products, structure=0):
    """The Triton kernel; without a GPU it is interpreted, and its products are float32's own."""
    from soap_fast.backends.triton.launch.launcher import TritonLauncher
    from soap_fast.backends.triton.ops.grouped_matmul import grouped_matmul_triton

    precision = "ieee" if len(a) % 2 else "tf32x3"
    grouped_matmul_triton(a, b, products, TritonLauncher(1), precision, structure)


def grouped_matmul_by_address(a, b, products, structure=0):
    """The matrices named in a table, as a refresh names them."""
    memory = products[0] if products else torch.empty(0)
    grouped_matmul_at(memory, groups_of(a, b, products), structure)


interpreted_kernels = pytest.mark.skipif(not interpreted(), reason="TRITON_INTERPRET is not set")
OPS = [
    pytest.param(grouped_matmul_interpreted, id="triton", marks=interpreted_kernels),
    pytest.param(grouped_matmul_eager, id="eager"),
    pytest.param(grouped_matmul_native, id="native", marks=needs_native),
    pytest.param(grouped_matmul_by_address, id="by address", marks=needs_native),
]


def groups(shapes, dtype, seed):
    """Factors of these shapes, by rows or transposed views, and room for their products."""
    generator = torch.Generator().manual_seed(seed)
    a, b, products = [], [], []
    for n, rows, k, columns, a_by_rows, b_by_rows in shapes:
        left, right = ((n, *shape) for shape in ((rows, k), (k, columns)))
        a.append(laid(torch.randn(*left, dtype=dtype, generator=generator), a_by_rows))
        b.append(laid(torch.randn(*right, dtype=dtype, generator=generator), b_by_rows))
        products.append(torch.randn(n, rows, columns, dtype=dtype, generator=generator))
    return a, b, products


def laid(x, by_rows):
    return x.contiguous() if by_rows else x.mT.contiguous().mT


size = st.integers(1, 40)


@pytest.mark.parametrize("op", OPS)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 3), size, size, size, st.booleans(), st.booleans()), max_size=4
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    subtract=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products(op, shapes, dtype, subtract, seed):
    check(op, *groups(shapes, dtype, seed), SUBTRACT if subtract else 0)


def check(op, a, b, products, structure):
    before = [product.to(torch.float64, copy=True) for product in products]
    op(a, b, products, structure)
    for left, right, product, was in zip(a, b, products, before, strict=True):
        exact = left.double() @ right.double()
        magnitude = left.double().abs() @ right.double().abs()
        terms = left.shape[2]
        if structure & SUBTRACT:
            exact, magnitude, terms = was - exact, was.abs() + magnitude, terms + 1
        allowed = tolerances.sums(product.dtype, terms) * magnitude
        assert ((product - exact).abs() <= allowed).all()


def of_kind(monkeypatch, kind):
    """Tiles are of this class."""
    from soap_fast.backends.triton.launch import launcher
    from soap_fast.backends.triton.ops import grouped_matmul as grouped

    monkeypatch.setattr(grouped, "kind_of", lambda *_: kind)
    monkeypatch.setattr(grouped, "_geometry", grouped._geometry.__wrapped__)
    # As on sm_90: elsewhere tiles of 128 rows are computed by halves.
    monkeypatch.setattr(launcher, "constants_on", lambda op, constants, sm: constants)


@interpreted_kernels
@pytest.mark.parametrize(
    ("kind", "groups_of"),
    [(kind, 2) for kind in range(len(GROUPED_CLASSES))]
    + [(kind, 1) for kind in range(GROUPED_NARROW, len(GROUPED_CLASSES))],
)
@pytest.mark.parametrize("structure", [0, SUBTRACT])
def test_tiles_of_every_class(monkeypatch, kind, structure, groups_of):
    """In tf32x3, narrow ones in ieee too; matrices end within a tile and lie in larger ones."""
    of_kind(monkeypatch, kind)
    size = (132, 96, 92)
    a, b, products = groups([(2, *size, True, False)] * groups_of, torch.float32, kind)
    room = [torch.zeros(2, 140, 200) for _ in products]
    rows, columns = slice(7, 7 + size[0]), slice(100, 100 + size[2])
    inside = [x[:, rows, columns].copy_(y) for x, y in zip(room, products, strict=True)]
    check(grouped_matmul_interpreted, a, b, inside, structure)
    for x in room:
        x[:, rows, columns] = 0
        assert not x.any()


@interpreted_kernels
@pytest.mark.parametrize("kind", range(len(GROUPED_CLASSES)))
def test_a_square_is_taken_from_a_symmetric_matrix(monkeypatch, kind):
    """As a refresh does, operands rounded where tensor cores are; symmetric to the last bit."""
    of_kind(monkeypatch, kind)
    d = 132
    x, start = (
        torch.randn(2, d, d, generator=torch.Generator().manual_seed(d + i)) for i in (0, 1)
    )
    x, start = x + x.mT, start + start.mT
    product = start.clone()
    structure = SYMMETRIC | SUBTRACT | ROUNDED
    check(grouped_matmul_interpreted, [x] * 2, [x.mT] * 2, [product, start.clone()], structure)
    assert torch.equal(product, product.mT)


# Around one and two tiles of 32 and of 64; fewer where torch multiplies.
EDGES = (4, 32, 36, 68, 100, 132)
OTHER_EDGES = (1, 5, 64, 66)


def structured(d, dtype):
    """Pairs of factors and what is known of them, by what a refresh makes of them."""
    generator = torch.Generator().manual_seed(d)
    x, b = (torch.randn(2, d, d, dtype=dtype, generator=generator) for _ in range(2))
    b, half = b.tril(), x.mT @ x
    gram = half + half.mT
    return {
        "XᵀX": (x.mT, x, SYMMETRIC),
        "BᵀB": (b.mT, b, SYMMETRIC | RIGHT_LOWER | LEFT_UPPER),
        "Q B": (x, b, RIGHT_LOWER),
        "Bᵀ Q": (b.mT, x, LEFT_UPPER),
        "E E": (gram, gram, SYMMETRIC),
    }


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("groups", [1, 2], ids=["ieee", "tf32x3"])
@pytest.mark.parametrize("case", structured(1, torch.float32))
@pytest.mark.parametrize("by_rows", [True, False], ids=["for tensor cores", "other"])
def test_structure_changes_no_product(op, groups, case, by_rows):
    for d in EDGES if by_rows else OTHER_EDGES:
        a, b, structure = structured(d, torch.float32)[case]
        a, b = laid(a, by_rows), laid(b, not by_rows)
        products = [torch.full((2, d, d), torch.nan) for _ in range(groups)]
        op([a] * groups, [b] * groups, products, structure)
        exact = a.double() @ b.double()
        magnitude = a.double().abs() @ b.double().abs()
        for product in products:
            assert ((product - exact).abs() <= (d + 2) * 2**-23 * magnitude).all(), d


@interpreted_kernels
@pytest.mark.parametrize("groups", [1, 2], ids=["ieee", "tf32x3"])
def test_what_structure_leaves_out(groups):
    """Blocks of zeros are not read, and a symmetric product is so to the last bit."""
    d = 200
    _, b, structure = structured(d, torch.float32)["BᵀB"]
    transposed = b.mT.contiguous()
    poisoned = transposed.clone()
    tile = torch.arange(d) // 128
    poisoned[:, tile < tile[:, None]] = torch.nan  # below the diagonal tiles
    clean, product = torch.empty(2, d, d), torch.empty(2, d, d)
    both = [transposed] * groups, [transposed.mT] * groups
    grouped_matmul_interpreted(*both, [clean] * groups, structure)
    both = [poisoned] * groups, [poisoned.mT] * groups
    grouped_matmul_interpreted(*both, [product] * groups, structure)
    assert torch.equal(product, clean)
    assert torch.equal(product, product.mT)


@pytest.mark.parametrize("kind", range(len(GROUPED_CLASSES)))
@pytest.mark.parametrize("d", [64, 96, 640, 668])
def test_tiles_of_a_symmetric_product(monkeypatch, d, kind):
    """Those on the diagonal and below, whichever of both has several of the other."""
    from soap_fast.backends.triton.ops import grouped_matmul as grouped

    of_kind(monkeypatch, kind)
    height, width = GROUPED_CLASSES[kind]
    shape, by_rows, by_columns = (3, d, d), (d * d, d, 1), (d * d, 1, d)
    found = grouped._geometry((shape,) * 3, (by_rows, by_columns, by_rows), True, False, SYMMETRIC)
    below = sum(m + height > n for m in range(0, d, height) for n in range(0, d, width))
    assert found.tiles == 3 * below
    assert found.row[GROUPED_MATMUL["per_matrix"]] == below


@needs_native
def test_what_a_refresh_says_of_its_products_is_so():
    from soap_fast.step.refresh import refresh_by_cholesky

    seen = []

    def looked_at(a, b, products, structure=0):
        for left, right, product in zip(a, b, products, strict=True):
            seen.append(structure)
            multiply(left, right, product, structure)
            assert not structure & LEFT_UPPER or not left.tril(-1).any()
            assert not structure & RIGHT_LOWER or not right.triu(1).any()
            if structure & SYMMETRIC:
                torch.testing.assert_close(product, product.mT, **tolerances.LAYERS_64)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 100, 120, dtype=torch.float64, generator=generator)
    q = torch.linalg.qr(torch.randn(2, 100, 100, dtype=torch.float64, generator=generator)).Q
    chosen, allowed = torch.arange(2, dtype=torch.int32), torch.ones(2, dtype=torch.bool)
    library = torch.library.Library("soap_fast", "IMPL")
    library.impl("grouped_matmul_", looked_at, "CPU")
    try:
        refresh_by_cholesky([x @ x.mT], [q.contiguous()], [chosen], [allowed], 0.0)
    finally:
        library._destroy()
    told = SYMMETRIC | SUBTRACT | ROUNDED
    assert sorted(seen) == [0, 0, SYMMETRIC, SYMMETRIC, RIGHT_LOWER, 7, SUBTRACT, told]


@needs_native
def test_opcheck():
    a, b, products = groups([(2, 5, 7, 3, True, True), (3, 4, 9, 4, False, True)], torch.float32, 0)
    torch.library.opcheck(torch.ops.soap_fast.grouped_matmul_.default, (a, b, products))


@needs_native
@pytest.mark.parametrize("name", ["grouped_matmul_at_", "grouped_matmul_as_tensors_"])
def test_opcheck_by_address(name):
    """With no groups: opcheck moves tensors, and a table would go on naming where they were."""
    op = getattr(torch.ops.soap_fast, name).default
    torch.library.opcheck(op, (torch.zeros(3), groups_of([], [], [])))


@needs_native
def test_bad_input():
    a, b, products = groups([(2, 5, 7, 3, True, True)], torch.float32, 0)
    with pytest.raises(RuntimeError, match="each group needs one of each"):
        grouped_matmul_native(a, b, [])
    # torch's own words, where it hands them out (from 2.13 on).
    with pytest.raises(RuntimeError, match=r"aten::bmm: (Expected size|failed; torch has printed)"):
        grouped_matmul_native(a, a, products)
    table = groups_of(a * 2, b * 2, products * 2)
    for wrong in (table[0], table[:, :-1].contiguous(), table.int(), table.T.contiguous().T):
        with pytest.raises(RuntimeError, match=r"groups must be \[groups, 16\] int64"):
            grouped_matmul_at(products[0], wrong)


@needs_native
def test_a_kernel_takes_over_what_is_named_by_address():
    """And hands on what it does not serve, though it is registered for the device."""
    a, b, products = groups([(2, 5, 7, 3, True, True), (3, 4, 9, 4, False, True)], torch.float64, 0)
    expected, seen = [left @ right for left, right in zip(a, b, strict=True)], []

    def handed_on(memory, table, structure=0):
        seen.append((memory.dtype, table.shape, structure))
        grouped_matmul_as_tensors(memory, table, structure)

    library = torch.library.Library("soap_fast", "IMPL")
    library.impl("grouped_matmul_at_", handed_on, "CPU")
    try:
        grouped_matmul_at(products[0], groups_of(a, b, products))
    finally:
        library._destroy()
    assert seen == [(torch.float64, (2, GROUP_COLUMNS), 0)]
    for product, exact in zip(products, expected, strict=True):
        torch.testing.assert_close(product, exact, **tolerances.EXACT_64)


@needs_native
def test_another_kernel_takes_over_for_a_while():
    a, b, products = groups([(2, 30, 30, 30, True, True)], torch.float32, 0)
    grouped_matmul_native(a, b, products)
    plain = products[0].clone()
    with products_in_tf32x3():
        grouped_matmul_native(a, b, products)
        assert torch.equal(products[0], matmul_tf32x3(a[0], b[0]))
    assert not torch.equal(products[0], plain)
    grouped_matmul_native(a, b, products)
    assert torch.equal(products[0], plain)


def test_tf32x3_is_nearly_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    magnitude = a.double().abs() @ b.double().abs()
    error = ((matmul_tf32x3(a, b) - exact).abs() / magnitude).max()
    assert error < tolerances.TF32X3


@interpreted_kernels
@needs_native
def test_a_refresh_by_the_triton_kernel_is_the_refresh():
    """The extension's own refresh, its products by our kernel: sizes that 4 divides, and others."""
    from soap_fast.backends.triton import products
    from soap_fast.backends.triton.launch.launcher import TritonLauncher
    from soap_fast.step.refresh import refresh_by_cholesky, refresh_eager

    generator = torch.Generator().manual_seed(0)
    factors, bases = [], []
    for n, d in ((2, 33), (1, 64), (2, 100)):
        x = torch.randn(n, d, 2 * d, generator=generator)
        factors.append(x @ x.mT)
        bases.append(torch.linalg.qr(torch.randn(n, d, d, generator=generator)).Q.contiguous())
    selections = [torch.arange(len(k), dtype=torch.int32) for k in factors]
    allowed = [torch.ones(len(k), dtype=torch.bool) for k in factors]
    expected = [q.clone() for q in bases]
    refresh_eager(factors, expected, selections, allowed, 0.0)
    try:
        with products.products_by(TritonLauncher(1), "tf32x3", "cpu"):
            refresh_by_cholesky(factors, bases, selections, allowed, 0.0)
    finally:
        products._libraries.pop("cpu")._destroy()
    for mine, theirs in zip(bases, expected, strict=True):
        agreement = (mine.mT @ theirs).abs()
        assert (agreement - torch.eye(mine.shape[1])).abs().max() < tolerances.BASES
