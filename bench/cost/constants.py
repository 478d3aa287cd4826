"""Constants of the model of time, each with what it means and where it comes from.

Those that are fitted are fitted on the launches of elic, tf32x3, above 0.5 ms on one NVIDIA H100
80GB HBM3 (tests/data/cost/measured.json), and checked on dcae's. They change by a measurement only.
"""

from __future__ import annotations

MULTIPROCESSORS = 132  # of an H100 SXM
CLOCK = 1.8e9  # Hz; ncu's SM frequency in those launches is 1.80 to 1.88e9

# Cycles until a result is there. Fitted: the time of gather, gram and apply, which wait most.
FAR = 750.0  # a line that a program reads for the first time: from memory, behind others' requests
# By the code of what is timed they weigh little; CUDA's microbenchmarks give these magnitudes.
NEAR = 38.0  # a line that it has read before: from the L1
SHARED = 30.0  # shared memory, and another thread's register
SPECIAL = 25.0  # roots, reciprocals, conversions
CONSTANT = 40.0  # constant bank, special registers
BARRIER = 20.0  # all warps of a program meet
OPERANDS = 15.0  # until a store or copy has read its registers

# Cycles for which an instruction of a warp keeps a pipe of its scheduler: 32 threads over the lanes
# a scheduler has of each (CUDA C++ programming guide, throughput of arithmetic instructions, 9.0).
ALU, MULTIPLY, ADD, CONVERT = 2.0, 2.0, 1.0, 8.0
# A wavefront of shared or global memory: one a cycle for all four schedulers.
WAVEFRONT = 4.0
# HMMA.1688 in tf32: 1024 products at 256 a cycle and scheduler, of which mma.sync reaches half.
HMMA = 8.0
# A warpgroup's products at 1024 a cycle and multiprocessor: 494 TFLOP/s at 1.83 GHz.
WARPGROUP_PRODUCTS = 1024.0

# A program goes on slower by this share of the pipe time that others on its multiprocessor use.
# Fitted with FAR: 1.25 makes gather and apply of elic 6 % longer, of dcae 8 %.
CONTENTION = 1.0

# Sectors a second that the L2 takes of stores that fill only a part of each. Fitted: rotate 1 of
# elic writes 96 M of them in 2.09 ms, 46e9 a second; what else it waits for goes on meanwhile.
PARTIAL_SECTORS = 50e9

COPY = 3.0096e12  # bytes a second, read + written: roof `copy`
GEMM = {"tf32x3": 140.0e12, "ieee": 52.0e12, "tf32": 420.0e12}  # flops a second: roofs `gemm_`
LAUNCH = 4e-6  # seconds: what clock, adam and gram_reduce of elic take beyond their programs
