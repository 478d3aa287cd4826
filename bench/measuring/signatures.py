"""Types of every kernel's arguments, as the optimizer's own launches bind them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from bench import shapes
from bench.measuring.recorded import record
from soap_fast.backends.triton.launch.launcher import Launch, RecordingLauncher, kernel
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops.grouped_matmul import grouped_matmul_triton


@functools.cache
def signatures() -> dict[str, dict[str, str]]:
    """By op and parameter, constants apart, the type by Triton's own rule, e.g. `*fp32`.

    Raises:
        RuntimeError: no step launches an op, or a launch does not fit its kernel's parameters, or
            two launches of an op differ.
    """
    found: dict[str, dict[str, str]] = {}
    for launch in launches():
        types = signature(launch)
        if found.setdefault(launch.op, types) != types:
            raise RuntimeError(f"{launch.op} is launched with {found[launch.op]} and with {types}")
    if missing := set(TUNING) - set(found):
        raise RuntimeError(f"no recorded step launches {', '.join(sorted(missing))}")
    return found


def launches() -> Iterator[Launch]:
    """Those of a step that ends with a refresh, of normalised updates, and a refresh's products."""
    recorded = record(shapes.load("hyperprior"))
    recorded.refreshing_step()
    yield from recorded.launcher.launched
    yield recorded.engine.norm
    launcher = RecordingLauncher()
    grouped_matmul_triton(*([torch.empty(1, 4, 4)] for _ in range(3)), launcher, "ieee")
    yield from launcher.launched


def signature(launch: Launch) -> dict[str, str]:
    """Of one launch: whatever parameters are called, its arguments are in their order."""
    from triton.runtime.jit import mangle_type

    names = [name for name in kernel(launch.op).arg_names if name not in launch.constants]
    if len(names) != len(launch.arguments):
        raise RuntimeError(
            f"{launch.op} has the parameters {', '.join(names)} beside its constants, "
            f"and a step binds {len(launch.arguments)} arguments to them"
        )
    return {n: mangle_type(a) for n, a in zip(names, launch.arguments, strict=True)}
