"""How often kernels would be compiled, counted without compiling: Triton's keys of its cache.

    python tests/jit/variants.py

prints a line of JSON per case: what was to be compiled up to the end of the first refresh period,
and what in the 200 calls after it. Each is an op with its constants.

Without TRITON_INTERPRET; the repository and its tests on PYTHONPATH.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import stub_driver
import torch
from launched import short_sums
from steps import FREQUENCY, captured, optimizer
from streams import set_gradients
from triton import knobs

from soap_fast import SOAP
from soap_fast.backends.triton.launch.launcher import kernel
from soap_fast.backends.triton.launch.tuning import TUNING

CALLS = 200
# tf32, because sums of Gram matrices are then of another precision, as is all of a refresh.
PRECISION = "tf32"
# The number of factors that are due together is odd or even by the set of tensors.
SHAPES = ((6, 4, 3, 3), (5,), (8, 8), (33, 17), (12, 1), (7, 6, 5), (40, 200))
ONE_A_PHASE = ((6, 4, 3, 3), (5,))  # of `FREQUENCY` phases

Params = list[torch.nn.Parameter]


class Variants:
    """What is not in Triton's cache; each of it is seen once and never compiled.

    Attributes:
        found: op and constants of each.
    """

    def __init__(self) -> None:
        self.keys: set[tuple[str, str]] = set()
        self.found: list[str] = []

    def __call__(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        key = fn.name, str(compile["key"])
        if key not in self.keys:
            self.keys.add(key)
            self.found.append(f"{fn.name} {compile['constants']}")
        return True  # it is taken care of: do not compile, and do not launch


def every_gradient(params: Params, call: int) -> None:
    set_gradients(params, call)


def some_gradients(params: Params, call: int) -> None:
    """One tensor after the other goes without: the number of factors that are due changes."""
    set_gradients(params, call)
    if call >= FREQUENCY:
        params[call // FREQUENCY % len(params)].grad = None


def moved_gradients(params: Params, call: int) -> None:
    """At every call elsewhere, at any multiple of four bytes, as views of buffers may be."""
    set_gradients(params, call)
    for place, param in enumerate(params):
        assert param.grad is not None
        shift = (call + place) % 7
        buffer = torch.empty(param.numel() + shift)
        param.grad = buffer[shift:].view(param.shape).copy_(param.grad)


def change_options(found: SOAP, call: int) -> None:
    """Step options become other numbers, and groups' own: rows of a table, no argument."""
    group = found.param_groups[0]
    group["weight_decay"] = 0.01 * (call % 3)
    group["normalize_grads"] = call % 2 == 0


def measure(
    schedule: str,
    gradients: Callable[[Params, int], None],
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    graphed: bool = False,
) -> dict[str, list[str]]:
    """A whole period of calls, then `CALLS` more, of which every other one may be captured."""
    for op in TUNING:
        kernel(op).device_caches.clear()
    found, params = optimizer(precision=PRECISION, shapes=shapes, refresh_schedule=schedule)
    variants = Variants()
    knobs.runtime.jit_cache_hook = variants
    period = FREQUENCY + 2  # the first call, one that makes tables, and each phase once
    for call in range(period + CALLS):
        if call == period:
            first = len(variants.found)
        if graphed and call >= period and call % 2:
            captured(found, params, call)
        else:
            change_options(found, call)
            gradients(params, call)
            found.step()
    return {"first": variants.found[:first], "late": variants.found[first:]}


def main() -> None:
    torch.set_num_threads(1)
    stub_driver.install(90)
    with short_sums(2):
        measure_all()


def measure_all() -> None:
    for schedule in ("periodic", "staggered"):
        for gradients in (every_gradient, some_gradients, moved_gradients):
            case = {"case": f"{schedule} {gradients.__name__}"}
            print(json.dumps({**case, **measure(schedule, gradients)}), flush=True)
        for shapes in (SHAPES, ONE_A_PHASE):
            case = {"case": f"{schedule} captured {len(shapes)}"}
            result = measure(schedule, every_gradient, shapes=shapes, graphed=True)
            print(json.dumps({**case, **result}), flush=True)


if __name__ == "__main__":
    main()
