"""From programs to a launch: which multiprocessor has which, and how they slow each other down."""

from __future__ import annotations

import heapq

import numpy as np

from bench.cost.constants import CONTENTION
from bench.cost.operands import Array

REGISTERS, SHARED, THREADS, PROGRAMS = 65536, 227 * 1024, 2048, 32  # of a multiprocessor, sm_90
RESERVED = 1024  # bytes of shared memory of each program


def resident(registers: int, shared: int, threads: int) -> int:
    """Programs that a multiprocessor holds at a time; registers are handed out 8 a thread."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = SHARED // (shared + RESERVED)
    return max(1, min(by_registers, by_shared, THREADS // threads, PROGRAMS))


def together(alone: Array, busy: Array, warps: float) -> tuple[Array, Array]:
    """Cycles of programs that have so many warps on a scheduler, and cycles in which they keep it.

    Args:
        alone, busy: [programs] of one warp.
    """
    return alone + CONTENTION * (warps - 1) * busy, warps * busy


def launch_cycles(alone: Array, busy: Array, multiprocessors: int, slots: int) -> float:
    """Until the last program has ended; a program begins where one has ended.

    Args:
        alone: [programs] cycles of each alone.
        busy: [programs] cycles in which it keeps a scheduler's pipe.
        slots: programs of a multiprocessor at a time.
    """
    waiting = list(range(len(alone)))[::-1]
    left: list[dict[int, float]] = [{} for _ in range(multiprocessors)]
    use = busy / np.maximum(alone, 1)
    for _ in range(slots):
        for held in left:
            if waiting:
                program = waiting.pop()
                held[program] = float(alone[program])
    moments = [(_first(held, use), 0.0, place) for place, held in enumerate(left) if held]
    heapq.heapify(moments)
    last = 0.0
    while moments:
        last, before, place = heapq.heappop(moments)
        held = left[place]
        passed = (last - before) / pace(held, use)
        held = {program: cycles - passed for program, cycles in held.items()}
        held = {program: cycles for program, cycles in held.items() if cycles > 1e-3}
        while waiting and len(held) < slots:
            program = waiting.pop()
            held[program] = float(alone[program])
        left[place] = held
        if held:
            heapq.heappush(moments, (last + _first(held, use), last, place))
    return last


def pace(held: dict[int, float], use: Array) -> float:
    """How much longer programs of a multiprocessor take together than each alone."""
    shares = [float(use[program]) for program in held]
    return 1.0 + CONTENTION * (sum(shares) - max(shares))


def _first(held: dict[int, float], use: Array) -> float:
    return min(held.values()) * pace(held, use)
