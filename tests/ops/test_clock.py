"""clock against its twin: who takes the step, and the scalars of each tensor."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from compared import close, stepped
from kernel_cases import DEVICE, POISONED, WITHOUT_GRADIENT
from launched import LaunchedAlone, argument
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import clock
from soap_fast.triton_kernels.columns import OPTIONS


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


@pytest.mark.usefixtures("kernels")
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


def test_who_takes_no_step_is_left_alone(alone):
    start, end = alone.seen["derive"].before, alone.seen["apply"].after
    for name, value in start.items():
        index = name.split()[-1]
        if index in (str(POISONED), str(WITHOUT_GRADIENT)) and not name.startswith("skipped"):
            assert torch.equal(value, end[name]), name
    assert end[f"skipped {POISONED}"] == 1
    assert end[f"skipped {WITHOUT_GRADIENT}"] == 0
