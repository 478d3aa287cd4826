"""Programs on multiprocessors."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cost.schedule import launch_cycles, resident, together


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "expected"),
    [
        (160, 12464, 128, 3),
        (58, 0, 32, 32),
        (72, 4096, 128, 7),
        (180, 49152, 128, 2),
        (211, 24576, 128, 2),
        (96, 12328, 128, 5),
    ],
)
def test_as_many_programs_as_ncu_says(registers, shared, threads, expected):
    """Its theoretical occupancy of gather, clock, fold_gram, rotate 0, rotate 1 and apply."""
    assert resident(registers, shared, threads) == expected


def test_programs_that_use_no_pipe_do_not_disturb_each_other():
    alone = np.array([100.0, 300.0, 50.0, 60.0])
    nothing = np.zeros(4)
    assert launch_cycles(alone, nothing, 2, 2) == pytest.approx(300)
    assert launch_cycles(alone, nothing, 1, 2) == pytest.approx(300)
    assert launch_cycles(alone, nothing, 1, 1) == pytest.approx(510)


def test_programs_that_use_all_of_a_pipe_take_turns():
    alone = np.full(4, 100.0)
    assert launch_cycles(alone, alone, 1, 4) == pytest.approx(400)
    assert launch_cycles(alone, alone, 4, 1) == pytest.approx(100)


def test_warps_of_one_program_are_in_each_others_way_like_those_of_two():
    alone, busy = np.array([100.0]), np.array([40.0])
    one = launch_cycles(*together(alone, busy, 2), 1, 1)
    two = launch_cycles(*together(np.full(2, 100.0), np.full(2, 40.0), 1), 1, 2)
    assert one == two == pytest.approx(140)
