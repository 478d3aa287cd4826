"""The last call of a launch, and what takes its place where none can be made."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from soap_fast.fused.tuning import TUNING, constants_on
from soap_fast.ranges import named


@dataclass
class Launch:
    """A kernel with all of its arguments bound; addresses change in its tables, not here.

    Attributes:
        op: name of the op, of its file and of its kernel.
        arguments: in the order of the kernel's, without `tl.constexpr`.
        constants: `tl.constexpr` arguments by name.
        tiles: what the programs walk.
        compiled: what the launcher keeps between calls.
    """

    op: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tiles: int
    compiled: Any = field(default=None, repr=False)


class Launcher(Protocol):
    def programs(self, op: str, tiles: int) -> int: ...

    def __call__(self, launch: Launch) -> None: ...


class TritonLauncher:
    """Launches on the current stream, or interprets where TRITON_INTERPRET is set."""

    def __init__(self, multiprocessors: int) -> None:
        self.multiprocessors = multiprocessors

    def programs(self, op: str, tiles: int) -> int:
        """How many persistent programs share the tiles."""
        return persistent_programs(op, tiles, self.multiprocessors)

    def __call__(self, launch: Launch) -> None:
        if launch.compiled is None:
            launch.compiled = kernel(launch.op)[(self.programs(launch.op, launch.tiles),)]
            launch.constants = constants_on(launch.op, launch.constants, architecture())
        # Triton 3.9 warns where fusion is left to its default, which 3.10 will change.
        with named(launch.op):
            launch.compiled(
                *launch.arguments,
                **launch.constants,
                num_warps=TUNING[launch.op].num_warps,
                enable_fp_fusion=True,
            )


@dataclass
class RecordingLauncher:
    """Keeps what would have been launched: everything but the last call is the optimizer's own."""

    multiprocessors: int = 132
    launched: list[Launch] = field(default_factory=list)

    def programs(self, op: str, tiles: int) -> int:
        return persistent_programs(op, tiles, self.multiprocessors)

    def __call__(self, launch: Launch) -> None:
        self.launched.append(launch)


def persistent_programs(op: str, tiles: int, multiprocessors: int) -> int:
    return min(tiles, multiprocessors * TUNING[op].programs_per_sm)


def architecture() -> int:
    """That Triton compiles for, 90 for sm_90; 0 where it interprets."""
    from triton import knobs  # type: ignore[import-untyped]
    from triton.runtime import driver  # type: ignore[import-untyped]

    return 0 if knobs.runtime.interpret else int(driver.active.get_current_target().arch)


def kernel(op: str) -> Any:
    """The Triton kernel of an op."""
    name = "gram" if op == "gram_reduce" else op
    return getattr(importlib.import_module(f"soap_fast.triton_kernels.{name}"), op)
