"""The time of a launch on an H100."""

from __future__ import annotations

from math import hypot

import numpy as np

from bench.cost import constants
from bench.cost.case import Case, Walked
from bench.cost.issue import alone
from bench.cost.schedule import launch_cycles, resident, together

SM = 90  # whose constants are measured


def seconds(case: Case, walk: Walked, precision: str) -> float:
    """What its programs take, what the L2 and what memory takes, and the launch itself.

    Two limits that are near slow a launch down more than the larger one alone, less than their
    sum: between both lies the root of the sum of their squares. Less than the roofs of products
    and copies say no launch takes.
    """
    programs = program_seconds(case, walk)
    partial = walk.partial / constants.PARTIAL_SECTORS
    moved = (case.bytes or 0) / constants.COPY
    products = (case.flops or 0) / constants.GEMM[precision]
    return constants.LAUNCH + max(hypot(programs, partial, moved), products)


def program_seconds(case: Case, walk: Walked) -> float:
    """Until the last program has ended, tile behind tile, if nothing but the programs took time."""
    per_scheduler = max(1.0, case.warps / 4)
    empty = alone(walk.code, walk.empty)
    chosen = np.array(list(walk.tiles))
    each = np.array([alone(walk.code, tally) for tally in walk.tiles.values()])
    each[[tally.ahead is None for tally in walk.tiles.values()]] -= empty
    of_tile = each[np.searchsorted(chosen, case.stands)]  # [tiles, 2]
    program = np.arange(case.tiles) % case.programs
    cycles, busy = (np.bincount(program, x, minlength=case.programs) for x in of_tile.T)
    slots = resident(case.registers, case.shared, case.threads)
    cycles, busy = together(cycles + empty.cycles, busy, per_scheduler)
    until = launch_cycles(cycles, busy, constants.MULTIPROCESSORS, slots)
    return until / constants.CLOCK
