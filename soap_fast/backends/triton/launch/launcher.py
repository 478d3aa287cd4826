"""Kernel launchers: Triton's, and one that keeps launches where none can be made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from soap_fast.backends.triton.launch.tuning import TUNING, constants_on
from soap_fast.ranges import named


@dataclass
class Launch:
    """A kernel with all of its arguments bound; addresses change in its tables, not here.

    Attributes:
        op: name of the op, of its file and of its kernel.
        arguments: in the order of the kernel's, without `tl.constexpr`.
        constants: `tl.constexpr` arguments by name.
        tiles: what the programs walk.
        kept: what the launcher keeps between calls, also of this launch with other arguments.
    """

    op: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tiles: int
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def ready(self) -> Callable[[], object]:
        """The kernel that was compiled, with its arguments.

        Addresses for tensors, which Triton's launcher need not ask them for.
        """
        addressed = (a.data_ptr() if isinstance(a, torch.Tensor) else a for a in self.arguments)
        return partial(self.kept["run"], *addressed, *self.kept["constants"])


class Launcher(Protocol):
    def programs(self, launch: Launch) -> int: ...

    def __call__(self, launch: Launch) -> None: ...


class TritonLauncher:
    """Launches on the current stream, or interprets where TRITON_INTERPRET is set."""

    def __init__(self, multiprocessors: int) -> None:
        self.multiprocessors = multiprocessors

    def programs(self, launch: Launch) -> int:
        """How many persistent programs share the tiles."""
        return persistent_programs(launch, self.multiprocessors)

    def __call__(self, launch: Launch) -> None:
        """Launch a kernel: through Triton's JIT once, from then on the kernel that came of it.

        A kernel is compiled by the types of its arguments and by which of them 16 divides. Of one
        launch these stay: tables begin at multiples of 16 bytes, numbers are not specialised.
        """
        with named(launch.op):
            if "run" in launch.kept:
                launch.ready()
            else:
                self._compile(launch)

    def _compile(self, launch: Launch) -> None:
        grid = (self.programs(launch), 1, 1)
        function = kernel(launch.op)
        constants = constants_on(launch.op, launch.constants, architecture())
        # Triton 3.9 warns where fusion is left to its default, which 3.10 will change.
        compiled = function[grid](
            *launch.arguments,
            **constants,
            num_warps=TUNING[launch.op].num_warps,
            enable_fp_fusion=True,
        )
        if compiled is not None:  # it is where Triton interprets
            order = function.arg_names[len(launch.arguments) :]
            launch.kept["constants"] = [constants[name] for name in order]
            launch.kept["run"] = compiled[grid]


@dataclass
class RecordingLauncher:
    """Keeps what would have been launched: everything but the last call is the optimizer's own."""

    multiprocessors: int = 132
    launched: list[Launch] = field(default_factory=list)

    def programs(self, launch: Launch) -> int:
        return persistent_programs(launch, self.multiprocessors)

    def __call__(self, launch: Launch) -> None:
        self.launched.append(launch)


def persistent_programs(launch: Launch, multiprocessors: int) -> int:
    return min(launch.tiles, multiprocessors * TUNING[launch.op].programs_per_sm)


def architecture() -> int:
    """That Triton compiles for, 90 for sm_90; 0 where it interprets."""
    from triton import knobs  # type: ignore[import-untyped]
    from triton.runtime import driver  # type: ignore[import-untyped]

    return 0 if knobs.runtime.interpret else int(driver.active.get_current_target().arch)


def kernel(op: str) -> Any:
    """The Triton kernel of an op."""
    name = "gram" if op == "gram_reduce" else op
    return getattr(importlib.import_module(f"soap_fast.triton_kernels.{name}"), op)
