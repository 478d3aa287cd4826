"""Every kernel alone, against its twin in float64 on what the kernel found in memory.

Bounds are those of `tf32.product_error` for products, and for the rest a count of roundings, each
of U = 2^-24 of the terms it rounds. The interpreter's products are float32 whatever the precision;
on a GPU the same tests run the real ones.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys

import pytest
import torch
from kernel_cases import DEVICE, INVERSE_SCALE, POISONED, WITHOUT_GRADIENT, launched
from launched import LaunchedAlone, argument
from tf32 import PRECISIONS, product_error
from tolerances import U

from soap_fast.backends.triton.backend import interpreted
from soap_fast.backends.triton.ops import (
    adam,
    apply,
    clock,
    derive,
    fold_gram,
    gather,
    gram,
    norm,
    rotate,
)
from soap_fast.backends.triton.ops.plane import from_plane, to_plane
from soap_fast.triton_kernels.columns import OPTIONS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (torch.cuda.is_available() or interpreted()),
    reason="Triton is for Linux, and without a GPU interprets under TRITON_INTERPRET=1",
)

MOMENTS = ("exp_avg", "exp_avg_sq")


# Interpreted, tf32 runs the code of tf32x3, and is held to a wider bound.
SOAK = "SOAP_FAST_EXAMPLES" in os.environ
ALL = SOAK or torch.cuda.is_available()


@pytest.fixture(params=PRECISIONS if ALL else [p for p in PRECISIONS if p != "tf32"])
def alone(request) -> LaunchedAlone:
    return launched(request.param)


def stepped(alone: LaunchedAlone) -> list[int]:
    """The tensors that take the step."""
    faulty = (POISONED, WITHOUT_GRADIENT)
    return [index for index in range(len(alone.calls)) if index not in faulty]


def close(found, expected, bound, where) -> None:
    error = (found.double() - expected).abs()
    assert (error <= bound).all(), f"{where}: {(error - bound).max():.1e} beyond the bound"


def accurate(alone: LaunchedAlone) -> str:
    """The precision of Gram matrices and of what gather computes: tf32 would be too little."""
    return "ieee" if alone.engine.precision == "ieee" else "tf32x3"


def test_derive(alone):
    before, after = alone.seen["derive"]
    for index, layout in enumerate(alone.layouts):
        for group in (group for groups in layout.operands for group in groups):
            bases = [before[f"Q{mode} {index}"].double() for mode in group.modes]
            for back in (False, True):
                found = alone.operand(after, index, group, back=back)
                expected = derive.derive(bases, not back, *found.shape)
                close(found, expected, len(bases) * U * expected.abs(), (index, group, back))


def test_gather(alone):
    before, after = alone.seen["gather"]
    for index in stepped(alone):
        layout, grad = alone.layouts[index], alone.grads[index]
        basis = None
        if layout.folded:
            basis = alone.basis(before, index, layout.folded, back=False).T
        scale = float(torch.tensor(INVERSE_SCALE))
        wanted = gather.gather(grad, basis, layout, scale)
        sizes = gather.gather(grad.abs(), None if basis is None else basis.abs(), layout, scale)
        fold = product_error(accurate(alone), layout.fold) if layout.folded else 0.0
        close(alone.plane(after, index, "a", 0), wanted.plane, (fold + 2 * U) * sizes.plane, index)
        rows = product_error(accurate(alone), layout.numel // layout.fold) + 4 * U
        for mode, parts in (alone.fold_grams(after, index) if layout.folded else {}).items():
            zero = torch.zeros(parts.shape[1:], dtype=torch.float64)
            gram = fold_gram.fold_gram(wanted.joint, zero, 0.0, layout, mode)
            size = fold_gram.fold_gram(sizes.joint, zero, 0.0, layout, mode)
            close(parts.sum(0), gram, rows * size, (index, mode))
        if not layout.folded:
            rows = product_error("ieee", layout.numel) + 4 * U
        close(alone.sums(after, index, "squares").sum(), wanted.square, rows * sizes.square, index)
    assert not alone.sums(after, POISONED, "squares").sum().isfinite()
    assert (alone.sums(after, WITHOUT_GRADIENT, "squares") == 0).all()


def test_clock(alone):
    before, after = alone.seen["clock"]
    for index, options in enumerate(alone.options):
        wanted = clock.clock(
            alone.sums(before, index, "squares").sum(),
            before[f"step {index}"].double(),
            before[f"skipped {index}"],
            options,
            factor=some_factor(before, index),
            has_grad=index != WITHOUT_GRADIENT,
        )
        assert wanted.taken == (index in stepped(alone))
        assert alone.scalar(after, index, "taken") == wanted.taken
        assert after[f"step {index}"] == wanted.step
        assert after[f"skipped {index}"] == wanted.skipped
        for name in ("size", "decay"):
            expected = getattr(wanted, name)
            close(alone.scalar(after, index, name), expected, 2 * U * expected, (index, name))
        if wanted.taken:
            error = product_error("ieee", alone.layouts[index].numel) + 4 * U
            close(alone.scalar(after, index, "floor"), wanted.floor, error * wanted.floor, index)


def some_factor(memory, index):
    names = (f"K{mode} {index}" for mode in range(5))
    return next((memory[name].double() for name in names if name in memory), None)


def test_gram(alone):
    before, after = alone.seen["gram"].before, alone.seen["gram_reduce"].after
    for index in stepped(alone):
        layout, beta_s = alone.layouts[index], alone.options[index].shampoo_beta
        plane = alone.plane(before, index, "a", 0)
        for group in layout.products:
            name = f"K{group.modes[0]} {index}"
            old, new = before[name].double(), after[name]
            wanted = gram.gram(plane, old, beta_s, layout, group)
            sizes = gram.gram(plane.abs(), old.abs(), beta_s, layout, group)
            kept = beta_s * old.abs()
            error = product_error(accurate(alone), layout.numel // group.size)
            close(new, wanted, error * (sizes - kept) + 4 * U * sizes, name)
            assert torch.equal(new, new.T)


def test_fold_gram(alone):
    before, after = alone.seen["fold_gram"]
    for index in stepped(alone):
        layout, beta_s = alone.layouts[index], alone.options[index].shampoo_beta
        if layout.folded is None:
            continue
        for mode, parts in alone.fold_grams(before, index).items():
            name = f"K{mode} {index}"
            old, new = before[name].double(), after[name]
            wanted = beta_s * old + (1 - beta_s) * parts.sum(0)
            sizes = beta_s * old.abs() + (1 - beta_s) * parts.abs().sum(0)
            terms = len(parts) * layout.fold // layout.plan.modes[mode]
            close(new, wanted, (product_error("ieee", terms) + 4 * U) * sizes, name)
            assert torch.equal(new, new.T)


def place_of_level(alone: LaunchedAlone, index: int, number: int) -> int:
    """Tensors with fewer products than others have theirs in the last launches."""
    return alone.deepest - len(alone.layouts[index].levels) + number


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_rotate(alone, back):
    for index in stepped(alone):
        layout = alone.layouts[index]
        count = len(layout.products)
        for number, group in enumerate(reversed(layout.products)):
            place = place_of_level(alone, index, number) + (alone.deepest if back else 0)
            before, after = alone.seen[f"rotate {place}"]
            source, out = ("a", "b") if (number + back * count) % 2 == 0 else ("b", "a")
            plane = alone.plane(before, index, source, number)
            matrix = alone.basis(before, index, group, back=back)
            wanted = rotate.rotate(plane, matrix, layout, number)
            bound = rotate.rotate(plane.abs(), matrix.abs(), layout, number)
            bound = product_error(alone.engine.precision, group.size) * bound
            found = alone.plane(after, index, out, number + 1)
            if number == count - 1 and not back:
                check_adam(alone, index, before, after, wanted, bound, found)
            else:
                close(found, wanted, bound, (index, place))


def test_adam(alone):
    before, after = alone.seen["adam"]
    seen = 0
    for index in stepped(alone):
        if not alone.layouts[index].products:
            plane = alone.plane(before, index, "a", 0)
            found = alone.plane(after, index, "a", 0)
            check_adam(alone, index, before, after, plane, torch.zeros_like(plane), found)
            seen += 1
    assert seen == 3


def check_adam(alone, index, before, after, rotated, bound, found) -> None:
    """Moments follow from g', which is known to within `bound`; n follows from them as they are.

    n = m / (sqrt(v) + eps): the root and the sum round once, eps once on its way to float32, and a
    division may be off by 2 ulp, 4 U, on a GPU: 8 U with one to spare.
    """
    options, layout = alone.options[index], alone.layouts[index]
    old, new = (
        [to_plane(memory[f"{name} {index}"].double(), layout) for name in MOMENTS]
        for memory in (before, after)
    )
    exp_avg, exp_avg_sq, _ = adam.adam(rotated, *old, options)
    sizes = [options.beta1 * old[0].abs(), options.beta2 * old[1]]
    grown = [(1 - options.beta1) * rotated.abs(), (1 - options.beta2) * rotated.square()]
    slopes = [(1 - options.beta1), (1 - options.beta2) * (2 * rotated.abs() + bound)]
    for name, kept, added, slope, mine, theirs in zip(
        MOMENTS, sizes, grown, slopes, new, (exp_avg, exp_avg_sq), strict=True
    ):
        close(mine, theirs, slope * bound + 6 * U * (kept + added), (index, name))
    follow = dataclasses.replace(options, beta1=1.0, beta2=1.0)
    floor = alone.scalar(before, index, "floor")
    n, whole = (adam.adam(rotated, *new, follow, least)[2] for least in (floor, 0.0))
    near = (new[1].sqrt() - floor).abs() <= 8 * U * floor  # where roots decide as they round
    n = torch.where(near & (found == 0), 0, torch.where(near, whole, n))
    close(found, n, 8 * U * n.abs(), (index, "direction"))
    square = found.square().sum()
    sums = alone.sums(after, index, "directions").sum()
    close(sums, square, (product_error("ieee", layout.numel) + U) * square, index)


def test_norm(alone):
    before, after = alone.seen["norm"]
    for index in stepped(alone):
        old, new = (alone.scalar(memory, index, "size") for memory in (before, after))
        layout = alone.layouts[index]
        if not alone.options[index].normalize_grads:
            assert old == new
            continue
        count = len(layout.products)
        n = alone.plane(before, index, "a" if count % 2 == 0 else "b", count)
        wanted = norm.norm(old, from_plane(n, layout))
        close(new, wanted, (product_error("ieee", layout.numel) + 8 * U) * wanted, index)


def test_apply(alone):
    before, after = alone.seen["apply"]
    for index in stepped(alone):
        layout, name = alone.layouts[index], f"param {index}"
        plane = alone.plane(before, index, "a", 0)
        basis, fold = None, 0.0
        if layout.folded:
            basis = alone.basis(before, index, layout.folded, back=True)
            fold = product_error(alone.engine.precision, layout.fold)
        size, decay = (alone.scalar(before, index, scalar) for scalar in ("size", "decay"))
        param = before[name].double()
        wanted = apply.apply(param, plane, basis, size, decay, layout)
        still = torch.zeros_like(decay)
        moved = apply.apply(
            0 * param, plane.abs(), None if basis is None else basis.abs(), -size, still, layout
        )
        # bfloat16 is cut off by the interpreter, to nearest by a GPU: by eps at most.
        info = torch.finfo(after[name].dtype)
        bound = (1 + decay) * (fold * moved + 4 * U * (param.abs() + moved))
        bound = bound + info.eps * wanted.abs() + info.smallest_normal * info.eps
        close(after[name], wanted, bound, name)
        assert not torch.equal(after[name], before[name])


def test_who_takes_no_step_is_left_alone(alone):
    start, end = alone.seen["derive"].before, alone.seen["apply"].after
    for name, value in start.items():
        index = name.split()[-1]
        if index in (str(POISONED), str(WITHOUT_GRADIENT)) and not name.startswith("skipped"):
            assert torch.equal(value, end[name]), name
    assert end[f"skipped {POISONED}"] == 1
    assert end[f"skipped {WITHOUT_GRADIENT}"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clock_reads_what_lies_on_the_device(dtype):
    """An lr behind an address, and somebody else's found_inf."""
    params = [torch.nn.Parameter(torch.ones(3, device=DEVICE)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones_like(param)
    alone = LaunchedAlone([{"params": params}], "ieee")
    engine = alone.engine
    engine.upload([param.grad for param in params], alone.options)
    lr = torch.tensor(0.123, dtype=dtype, device=DEVICE)
    row = engine.options.view(-1, len(OPTIONS))[0]
    row[OPTIONS["lr_double"]] = float(dtype == torch.float64)
    row.view(torch.int64)[OPTIONS["lr_address"]] = lr.data_ptr()
    engine.squares.fill_(1.0)
    (clock_launch,) = engine.launches["clock"]
    for found_inf in (0.0, 1.0):
        argument(clock_launch, "found_inf").fill_(found_inf)
        before = alone.memory()
        engine.launcher(clock_launch)
        after = alone.memory()
        for index, options in enumerate(alone.options):
            options = dataclasses.replace(options, lr=lr.cpu())
            wanted = clock.clock(
                torch.tensor(1.0), before[f"step {index}"].double(), before[f"skipped {index}"],
                options, found_inf=bool(found_inf),
            )  # fmt: skip
            assert bool(alone.scalar(after, index, "taken")) == bool(wanted.taken) != found_inf
            assert after[f"step {index}"] == wanted.step
            assert after[f"skipped {index}"] == wanted.skipped
            assert math.isclose(alone.scalar(after, index, "size"), wanted.size, rel_tol=2 * U)
