"""count: what became of each tensor's bases at a refresh, and whose moments follow.

refreshes[outcome - 1] += 1 ;  off_diagonal[mode] = share       for each mode that was looked at
carried = some basis of the tensor was refreshed
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import COUNT, COUNT_MODE, SCALARS

COLUMNS = tl.constexpr(len(COUNT))
REFRESHES = tl.constexpr(COUNT["refreshes"])
OFF_DIAGONAL = tl.constexpr(COUNT["off_diagonal"])
FIRST_MODE = tl.constexpr(COUNT["first_mode"])
MODES = tl.constexpr(COUNT["modes"])
MODE_COLUMNS = tl.constexpr(len(COUNT_MODE))
MODE = tl.constexpr(COUNT_MODE["mode"])
OUTCOME = tl.constexpr(COUNT_MODE["outcome"])
SHARE = tl.constexpr(COUNT_MODE["share"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tensors"])
def count(
    tasks,  # [tensors, COLUMNS] int64, of every tensor
    modes,  # [due, MODE_COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tensors,
    LEFT_OUT: tl.constexpr,  # outcomes, see soap_fast/step/refresh.py
    REFRESHED: tl.constexpr,
):
    for index in range(tl.program_id(0), n_tensors, tl.num_programs(0)):
        task = tasks + index * COLUMNS
        refreshes = tl.load(task + REFRESHES).to(tl.pointer_type(tl.int64))
        off_diagonal = tl.load(task + OFF_DIAGONAL).to(tl.pointer_type(tl.float32))
        first = tl.load(task + FIRST_MODE)
        moved = 0.0
        for place in range(first, first + tl.load(task + MODES)):
            row = modes + place * MODE_COLUMNS
            outcome = tl.load(tl.load(row + OUTCOME).to(tl.pointer_type(tl.int64)))
            share = tl.load(tl.load(row + SHARE).to(tl.pointer_type(tl.float32)))
            if outcome != LEFT_OUT:
                counter = refreshes + (outcome - 1)
                tl.store(counter, tl.load(counter) + 1)
                tl.store(off_diagonal + tl.load(row + MODE), share)
            moved = tl.where(outcome == REFRESHED, 1.0, moved)
        tl.store(carried + index * SCALAR_COLUMNS + TAKEN, moved)
