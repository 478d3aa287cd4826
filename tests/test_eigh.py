"""eigh: the eager twin against float64, and the native operator against the twin."""

from __future__ import annotations

import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import needs_native

from soap_fast.step.eigh import eigh_eager, eigh_native


@pytest.fixture(autouse=True)
def one_thread():
    """Threads wait for each other, which is slow where tests share a machine: only where needed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BOTH = [
    pytest.param(eigh_eager, id="eager"),
    pytest.param(eigh_native, id="native", marks=needs_native),
]
DTYPES = [torch.float32, torch.float64]
SIZES = [*range(1, 131), 700]
LAPACK_THREADS_SIZE = 2048  # kLapackThreadsFrom of csrc/eigh/cpu.cpp


def factors_of(d: int, dtype: torch.dtype, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Gram matrices, every second one with eigenvalues over 12 decades."""
    generator = torch.Generator().manual_seed(1000 * seed + d)
    g = torch.randn(count, d, d + 3, dtype=torch.float64, generator=generator)
    g[1::2] *= torch.logspace(0, -6, d, dtype=torch.float64)[:, None]
    return (g @ g.mT / d).to(dtype)  # [count, d, d]


def everything(*stacks: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return list(stacks), [torch.arange(len(stack), dtype=torch.int32) for stack in stacks]


def errors(factors: torch.Tensor, values: torch.Tensor, bases: torch.Tensor) -> dict[str, float]:
    """In float64, the worst over a stack, in units of the dtype's eps · sqrt(d)."""
    unit = torch.finfo(factors.dtype).eps * factors.shape[1] ** 0.5
    K, w, Q = factors.double(), values.double(), bases.double()
    gram = Q.mT @ Q
    diagonal = gram.diagonal(dim1=1, dim2=2)
    oracle = torch.linalg.eigvalsh(K).flip(1)
    residual = torch.linalg.matrix_norm(K - Q @ (w[:, :, None] * Q.mT))
    found = {
        "reconstruction": residual / torch.linalg.matrix_norm(K),
        "diagonal": (diagonal - 1).abs(),
        "off_diagonal": (gram - torch.diag_embed(diagonal)).abs(),
        "eigenvalues": (w - oracle).abs() / oracle.abs().amax(1, keepdim=True),
    }
    return {name: float(error.max()) / unit for name, error in found.items()}


def assert_same(found, expected):
    """Bit for bit, a NaN being equal to itself."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eigh", BOTH)
def test_diagonalises(eigh, dtype):
    stacks, selections = everything(*(factors_of(d, dtype) for d in SIZES))
    eigenvalues, bases = eigh(stacks, selections)
    for stack, values, basis in zip(stacks, eigenvalues, bases, strict=True):
        assert (values.diff(dim=1) <= 0).all()
        assert values.dtype == basis.dtype == dtype
        assert basis.is_contiguous()
        found = errors(stack, values, basis)
        for name, bound in tolerances.EIGH.items():
            assert found[name] <= bound, (stack.shape[1], name)


def hard_factors_of(d: int, dtype: torch.dtype) -> torch.Tensor:
    """What small factors of real models look like, and what breaks rotations."""
    generator = torch.Generator().manual_seed(d)
    g = torch.randn(d, d, dtype=torch.float64, generator=generator)
    basis, _ = torch.linalg.qr(g)
    dead = torch.arange(d) % 3 != 1
    two_clusters = torch.where(torch.arange(d) % 2 == 0, 1.0, 1e-5).double()
    kinds = {
        "rank 1": g[:, :1] @ g[:, :1].mT,
        "all the same": torch.ones(d, d),
        "multiple of the identity": 0.7 * torch.eye(d),
        "nearly the identity": torch.eye(d) + 1e-6 * (g + g.mT),
        "two clusters": basis @ torch.diag(two_clusters) @ basis.mT,
        "dead rows": (g @ g.mT) * dead * dead[:, None],
        "indefinite": g + g.mT,
        "all but diagonal": torch.ones(d, d) - torch.eye(d),
        "12 decades": (g * torch.logspace(0, -6, d).double()[:, None])
        @ g.mT
        * torch.logspace(0, -6, d).double(),
    }
    return torch.stack([kind.double() for kind in kinds.values()]).to(dtype)  # [kinds, d, d]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eigh", BOTH)
def test_hard_factors(eigh, dtype):
    stacks = [hard_factors_of(d, dtype) for d in range(2, 33)]
    eigenvalues, bases = eigh(*everything(*stacks))
    for stack, values, basis in zip(stacks, eigenvalues, bases, strict=True):
        assert (values.diff(dim=1) <= 0).all()
        lower = stack.tril() + stack.tril(-1).mT  # in the dtype, hardly symmetric to the last bit
        found = errors(lower, values, basis)
        for name, bound in tolerances.EIGH.items():
            assert found[name] <= bound, (stack.shape[1], name)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_is_as_accurate_as_eager(dtype):
    """On two threads, set by torch.set_num_threads: see csrc/workers.cpp for what that does."""
    stacks, selections = everything(
        factors_of(700, dtype), *(factors_of(d, dtype, count=8) for d in (5, 33, 96, 320))
    )
    eager = eigh_eager(stacks, selections)
    torch.set_num_threads(2)
    native = eigh_native(stacks, selections)
    torch.set_num_threads(1)
    for stack, *results in zip(stacks, *eager, *native, strict=True):
        allowed = errors(stack, *results[:2])
        for name, found in errors(stack, *results[2:]).items():
            assert found <= tolerances.NATIVE_EIGH * allowed[name], (stack.shape[1], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eigh", BOTH)
def test_scale_changes_nothing(eigh, dtype):
    factors = factors_of(24, dtype, count=1)
    powers = torch.arange(-100, 41, 10)  # 1e-30 to 1e12
    stack = factors * torch.exp2(powers.double()).to(dtype)[:, None, None]
    (values,), (bases,) = eigh(*everything(stack))
    (plain,), (basis,) = eigh(*everything(factors))
    assert_same(list(bases), [basis[0]] * len(powers))
    assert_same(list(values), [plain[0] * 2.0 ** int(power) for power in powers])

    smallest, greatest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    extremes = torch.stack([factors[0] * (smallest / 8), factors[0] * (greatest / 8)])
    for values, basis in zip(*(lists[0] for lists in eigh(*everything(extremes))), strict=True):
        assert values[0] > 0
        off = (basis.double().mT @ basis.double() - torch.eye(24)).abs().max()
        assert off <= tolerances.EIGH["diagonal"] * torch.finfo(dtype).eps * 24**0.5


@pytest.mark.parametrize("d", [1, 7, 40, 140])
@pytest.mark.parametrize("eigh", BOTH)
def test_a_factor_without_eigenvectors_is_reported_alone(eigh, d):
    good = factors_of(d, torch.float32, count=6)
    stack = good.clone()
    stack[1, d - 1, 0] = torch.nan
    stack[2] = 0
    stack[4, d // 2, d // 2] = -torch.inf
    (values,), (bases,) = eigh(*everything(stack))
    (good_values,), (good_bases,) = eigh(*everything(good))

    untouched = [0, 3, 5]
    assert_same(list(values[untouched]), list(good_values[untouched]))
    assert_same(list(bases[untouched]), list(good_bases[untouched]))
    assert values[[1, 4]].isnan().all()
    assert (values[2] == 0).all()
    assert_same(list(bases[[1, 2, 4]]), [torch.eye(d)] * 3)


@pytest.mark.parametrize("eigh", BOTH)
def test_lower_triangle_is_read_through_any_strides(eigh):
    factors = factors_of(19, torch.float64, count=6)
    expected = eigh(*everything(factors))
    poisoned = factors.masked_fill(torch.ones(19, 19).triu(1).bool(), torch.nan)
    wide = torch.full((12, 40, 40), torch.nan, dtype=torch.float64)
    wide[::2, 1:39:2, 2:40:2] = poisoned
    wide_before = wide.clone()
    selection = torch.arange(12, dtype=torch.int32)[::2] // 2  # strided as well
    views = [
        wide[::2, 1:39:2, 2:40:2],
        poisoned.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        poisoned.mT.contiguous().mT,
    ]
    for view in views:
        assert not view.is_contiguous()
        values, bases = eigh([view], [selection])
        assert_same(values + bases, expected[0] + expected[1])
    assert_same([wide], [wide_before])


@pytest.mark.parametrize("eigh", BOTH)
def test_nothing_to_do(eigh):
    assert tuple(eigh([], [])) == ([], [])
    none = torch.empty(0, dtype=torch.int32)
    stacks = [torch.ones(3, 5, 5), torch.empty(0, 4, 4), torch.empty(2, 0, 0)]
    values, bases = eigh(stacks, [none, none, torch.tensor([1], dtype=torch.int32)])
    assert [tuple(v.shape) for v in values] == [(0, 5), (0, 4), (1, 0)]
    assert [tuple(b.shape) for b in bases] == [(0, 5, 5), (0, 4, 4), (1, 0, 0)]


def selecting(*indices: int) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int32)


@pytest.fixture(scope="module")
def pool():
    return {d: factors_of(d, torch.float32, count=12) for d in (1, 3, 8, 9, 33, 64, 130)}


@pytest.fixture(scope="module")
def alone(pool):
    """Every factor of the pool by a call of its own, on two threads."""
    threads = torch.get_num_threads()  # one_thread comes later, and would find these two
    torch.set_num_threads(2)
    found = {
        (d, i): [results[0][0] for results in eigh_native([pool[d]], [selecting(i)])]
        for d in pool
        for i in range(12)
    }
    torch.set_num_threads(threads)
    return found


@needs_native
@given(
    picks=st.lists(
        st.tuples(
            st.sampled_from([1, 3, 8, 9, 33, 64, 130]), st.lists(st.integers(0, 11), max_size=40)
        ),
        max_size=6,
    )
)
def test_bits_do_not_depend_on_the_batch(pool, alone, picks):
    torch.set_num_threads(2)
    values, bases = eigh_native(
        [pool[d] for d, _ in picks], [selecting(*chosen) for _, chosen in picks]
    )
    for (d, chosen), found_values, found_bases in zip(picks, values, bases, strict=True):
        for i, index in enumerate(chosen):
            assert_same([found_values[i], found_bases[i]], alone[d, index])


@needs_native
def test_large_factors_among_others(pool):
    """The route of LAPACK's own threads, but on one: csrc/eigh/cpu.cpp says why not on two."""
    large = factors_of(LAPACK_THREADS_SIZE, torch.float32, count=1)
    values, bases = eigh_native(*everything(pool[9], large, pool[130]))
    assert_same([values[1], bases[1]], [results[0] for results in eigh_native(*everything(large))])
    assert (values[1].diff() <= 0).all()
    found = errors(large, values[1], bases[1])
    assert all(found[name] <= bound for name, bound in tolerances.EIGH.items()), found


@pytest.mark.parametrize("failing", [torch.float32, torch.float64], ids=["in float32", "always"])
@pytest.mark.parametrize("eigh", BOTH)
def test_lapack_gives_up(eigh, failing):
    """A stand-in for LAPACK refuses one factor of twenty, in float32 or in any dtype."""
    d = 16  # csrc/eigh/cpu.cpp asks LAPACK from d = 13 on
    good = factors_of(d, torch.float32, count=20)
    stack = good.clone()
    stack[13] = torch.eye(d)
    real = torch.ops.aten._linalg_eigh.default
    attempts = []

    def refuse(keys, A, UPLO="L", compute_v=True):
        batch = A.reshape(-1, d, d)
        identity = batch[:, :1, :1] * torch.eye(d, dtype=A.dtype)  # scaled
        attempts.append(A.dtype)
        if (batch.tril() == identity).flatten(1).all(1).any() and A.dtype in (
            torch.float32,
            failing,
        ):
            raise torch.linalg.LinAlgError("refused")
        return real.redispatch(keys & torch._C._after_autograd_keyset, A, UPLO, compute_v)

    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_linalg_eigh", refuse, "AutogradCPU", with_keyset=True)
        (values,), (bases,) = eigh(*everything(stack))
    finally:
        library._destroy()
    (expected_values,), (expected_bases,) = eigh(*everything(good))

    assert torch.float64 in attempts
    others = [i for i in range(20) if i != 13]
    assert_same(list(values[others]), list(expected_values[others]))
    assert_same(list(bases[others]), list(expected_bases[others]))
    if failing == torch.float32:
        torch.testing.assert_close(values[13], torch.ones(d), **tolerances.PLAIN)
        gram = bases[13].mT @ bases[13]
        torch.testing.assert_close(gram, torch.eye(d), **tolerances.PLAIN)
    else:
        assert values[13].isnan().all()
        assert_same([bases[13]], [torch.eye(d)])


@needs_native
def test_native_is_a_good_citizen_of_torch():
    stacks, selections = everything(factors_of(5, torch.float32), factors_of(12, torch.float64))
    selections[1] = selections[1][:1]
    torch.library.opcheck(torch.ops.soap_fast.eigh.default, (stacks, selections))

    def bases_of(stacks, selections):
        return [2 * basis for basis in eigh_native(stacks, selections)[1]]

    compiled = torch.compile(bases_of, fullgraph=True, backend="aot_eager")
    assert_same(compiled(stacks, selections), bases_of(stacks, selections))


STACK, ALL = torch.ones(4, 3, 3), torch.arange(4, dtype=torch.int32)
BAD = {
    "selection missing": ([STACK], [], "1 stacks of factors but 0 selections"),
    "one factor": ([STACK[0]], [ALL], r"factors\[0\] has shape \[3, 3\], not \[n, d, d\]"),
    "not square": ([STACK, STACK[:, :2]], [ALL, ALL], r"factors\[1\] has shape \[4, 2, 3\]"),
    "bfloat16": ([STACK.bfloat16()], [ALL], "neither float32 nor float64"),
    "int64": ([STACK], [ALL.long()], "1-D and int32"),
    "2-D selection": ([STACK], [ALL[None]], r"selections\[0\] has shape \[1, 4\]"),
    "too large": ([STACK], [ALL + 2], r"selections\[0\]\[2\]=4 is outside \[0, 4\)"),
    "negative": ([STACK], [ALL - 1], r"selections\[0\]\[0\]=-1 is outside \[0, 4\)"),
}


@needs_native
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    stacks, selections, message = BAD[case]
    with pytest.raises(RuntimeError, match=message):
        eigh_native(stacks, selections)
