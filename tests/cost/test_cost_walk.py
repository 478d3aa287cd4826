"""Walking machine code: loops, threads that part, sectors, and what decides none of it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cost import alu, sass
from bench.cost.chain import dependent_loads
from bench.cost.issue import alone
from bench.cost.memory import Memory, touched
from bench.cost.operands import Registers
from bench.cost.program import Unmodelled, prepare
from bench.cost.walk import Tally, Walker

THREADS, BASE, GRID = 64, 0x210, 0x0C
# A program per row of a table: as often as its row says, each thread stores a word; then a float
# decides nothing. Stride in bytes and address of the output are arguments.
LOOP = """loop

7f1 S2R R0, SR_TID.X
7f1 S2R R1, SR_CTAID.X
7f1 LDC R2, c[0x0][0x210]
7f1 LDC.64 R4, c[0x0][0x218]
7f1 LDC.64 R6, c[0x0][0x220]
7f1 IMAD.WIDE R6, R1, 0x4, R6
7f1 LDG.E R8, desc[UR4][R6.64]
7f1 IMAD.WIDE.U32 R4, R0, R2, R4
7f1 IMAD.MOV.U32 R9, RZ, RZ, RZ
7f1 FADD R10, R10, R11
7f1 STG.E desc[UR4][R4.64], R10
7f1 VIADD R9, R9, 0x1
7f1 IADD3 R4, P1, R4, 0x1000, RZ
7f1 IADD3.X R5, RZ, R5, RZ, P1, !PT
7f1 ISETP.NE.AND P0, PT, R9, R8, PT
7f1 @P0 BRA @90
7f1 EXIT
"""
PER_TURN, AROUND = 7, 10  # instructions


def walker(text: str, stride: int, rows: list[int]) -> tuple[sass.Code, Walker]:
    code = sass.parse(text)
    bank = bytearray(BASE + 24)
    bank[BASE : BASE + 4] = stride.to_bytes(4, "little")
    bank[BASE + 8 : BASE + 16] = (1 << 40).to_bytes(8, "little")
    bank[BASE + 16 : BASE + 24] = (1 << 41).to_bytes(8, "little")
    memory = Memory([(1 << 41, np.array(rows, np.uint32).tobytes())])
    return code, Walker(prepare(code), memory, THREADS, {0: bytes(bank), 2: b""}, GRID)


@pytest.mark.parametrize("turns", [1, 2, 7, 8, 100, 4097])
def test_a_loop_counts_all_its_turns_and_walks_a_few(turns):
    """It ends where its counter equals a number of the table, which no step may pass."""
    _, made = walker(LOOP, 4, [1, turns])
    tally = made.run(1, 2)
    warps = THREADS // 32
    assert tally.instructions == warps * (PER_TURN * turns + AROUND)
    assert tally.sectors["store"] == turns * THREADS * 4 // 32
    assert tally.bytes == {"store": 4 * turns * THREADS, "load": 4 * warps}
    assert len(tally.path) < 20


def test_a_stride_has_a_sector_for_each_thread():
    _, made = walker(LOOP, 256, [3])
    tally = made.run(0, 1)
    assert tally.sectors["store"] == tally.partial == 3 * THREADS


def test_threads_that_part_meet_again():
    """A warp whose threads go both ways executes both, once; the other warp jumps as a whole."""
    jump = "7f1 ISETP.GE.U32.AND P2, PT, R0, 0x7, PT\n7f1 @P2 BRA @e0\n" + 3 * "7f1 NOP\n"
    text = LOOP.replace("7f1 FADD R10, R10, R11\n", jump).replace("@90", "@e0")
    _, made = walker(text, 4, [1])
    both = AROUND + PER_TURN - 1 + 2 + 3
    assert made.run(0, 1).instructions == both + both - 3


def test_a_jump_by_a_uniform_predicate_may_not_be_taken():
    """What lies behind it decides too: here the number of turns, whose register held another."""
    ahead = "7f1 R2UR UR8, R2\n7f1 UISETP.GE.AND UP0, UPT, UR8, 0x0, UPT\n"
    ahead += "7f1 BRA.U !UP0, @160\n7f1 R2UR UR8, R8\n"
    text = LOOP.replace("7f1 FADD", ahead + "7f1 FADD").replace("R9, R8, PT", "R9, UR8, PT")
    text = text.replace("@90", "@d0").replace("7f1 EXIT", "7f1 EXIT\n7f1 NOP\n7f1 EXIT")
    _, made = walker(text, 4, [3])
    assert made.run(0, 1).bytes["store"] == 3 * THREADS * 4


def test_what_is_not_known_is_said_where_it_decides():
    """An unknown instruction may compute numbers, but no address."""
    text = LOOP.replace("FADD R10, R10, R11", "BREV R10, R0")
    walker(text, 4, [1])[1].run(0, 1)
    with pytest.raises(Unmodelled, match=r"BREV at 0x\w+ decides"):
        walker(text.replace("BREV R10", "BREV R9"), 4, [1])


def test_a_program_without_end_is_an_error():
    text = LOOP.replace("@P0 BRA @90", "BRA @90")
    with pytest.raises(Unmodelled, match="does not end"):
        walker(text, 4, [1])[1].run(0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SHF.R.S32.HI R9, RZ, 0x1f, R0", -1),
        ("SHF.L.U64.HI R9, R1, 0x4, R2", 0x12345678 << 4 | 0xF),
        ("LEA.HI.X.SX32 R9, R0, R2, 0x2, PT", 0x12345678 - 1 + 1),
        ("LEA R9, R1, R2, 0x2", (0xF0000001 << 2) + 0x12345678),
        ("IMAD.HI.U32 R9, R1, R1, RZ", 0xF0000001**2 >> 32),
        ("LOP3.LUT R9, R0, R1, R2, 0x96, !PT", 0xFFFFFFF6 ^ 0xF0000001 ^ 0x12345678),
        ("PRMT R9, R2, 0x3012, R1", 0x12785634),
        ("VIMNMX R9, R0, R2, PT", -10),
        ("SGXT R9, R1, 0x1", -1),
        ("IABS R9, R0", 10),
        ("POPC R9, R1", 5),
        ("IADD3 R9, -R0, 0x1, RZ", 11),
        ("HFMA2.MMA R9, -RZ, RZ, 1.875, 0", 0x3F800000),
        ("SEL R9, R0, R2, !PT", 0x12345678),
        ("F2I.FTZ.U32.TRUNC.NTZ R9, R3", 3),
        ("I2F.U32.RP R9, R1", int(np.float32(0xF0000100).view(np.uint32))),
    ],
)
def test_integers_are_exact(text, expected):
    words = {"R0": -10 & 0xFFFFFFFF, "R1": 0xF0000001, "R2": 0x12345678, "R3": 0x40733333}
    registers = Registers(1, {}, {})
    registers.words = {n: np.array([v], np.uint32) for n, v in words.items()}
    made = alu.integer(sass.parse(f"k\n\n7f1 {text}").instructions[0])
    assert made is not None
    (found,) = made.values(registers)
    assert int(found[0]) == expected & 0xFFFFFFFF


def test_a_vote_is_of_a_warp():
    registers = Registers(64, {}, {})
    registers.flags = {"P0": np.arange(64) < 40}
    for text, expected in (("VOTEU.ALL UP0, P0", [True, False]), ("VOTE.ANY P1, P0", [True, True])):
        made = alu.integer(sass.parse(f"k\n\n7f1 {text}").instructions[0])
        assert made is not None
        (found,) = made.values(registers)
        assert found[[0, 32]].tolist() == expected
    made = alu.integer(sass.parse("k\n\n7f1 VOTEU.ANY UR5, UPT, P0").instructions[0])
    assert made is not None
    assert made.values(registers)[0][[0, 32]].tolist() == [0xFFFFFFFF, 0xFF]


def test_a_sum_is_of_a_warp():
    registers = Registers(64, {}, {})
    registers.words = {"R5": np.arange(64, dtype=np.uint32)}
    made = alu.integer(sass.parse("k\n\n7f1 REDUX.SUM.S32 UR4, R5").instructions[0])
    assert made is not None
    (found,) = made.values(registers)
    assert found[[0, 31, 32]].tolist() == [496, 496, 1520]


def test_division_is_what_compilers_make_of_it():
    """The reciprocal that ptxas corrects by integers, for all remainders that may round wrongly."""
    lines = """k

7f1 I2F.U32.RP R2, R1
7f1 MUFU.RCP R2, R2
7f1 VIADD R2, R2, 0xffffffe
7f1 F2I.FTZ.U32.TRUNC.NTZ R3, R2
7f1 IMAD.MOV.U32 R2, RZ, RZ, RZ
7f1 IMAD.MOV R4, RZ, RZ, -R3
7f1 IMAD R4, R4, R1, RZ
7f1 IMAD.HI.U32 R3, R3, R4, R2
7f1 IMAD.HI.U32 R3, R3, R0, RZ
7f1 IMAD.MOV R4, RZ, RZ, -R3
7f1 IMAD R4, R1, R4, R0
"""
    generator = np.random.default_rng(0)
    n = generator.integers(0, 2**31, 256).astype(np.uint32)
    d = generator.integers(1, 4096, 256).astype(np.uint32)
    registers = Registers(256, {}, {})
    registers.words = {"R0": n, "R1": d}
    for instruction in sass.parse(lines).instructions:
        made = alu.integer(instruction)
        assert made is not None
        for name, value in zip(made.names, made.values(registers), strict=True):
            registers.set(name, value, None)
    quotient, rest = registers.words["R3"], registers.words["R4"]
    corrected = quotient + (rest >= d) + (rest >= 2 * d)
    assert (corrected == n // d).all()


def test_sectors_of_an_access():
    lane = np.arange(32, dtype=np.uint64)
    everyone = np.ones(32, bool)
    assert touched(4 * lane, 4, everyone) == (4, 0, 128)
    assert touched(16 * lane, 16, everyone) == (16, 0, 512)
    assert touched(4 * lane + np.uint64(16), 4, everyone) == (5, 2, 128)
    assert touched(640 * lane, 4, everyone) == (32, 32, 128)
    assert touched(0 * lane, 4, everyone) == (1, 1, 4)
    assert touched(4 * lane, 4, lane < 8) == (1, 0, 32)
    assert touched(4 * lane, 4, lane < 0) == (0, 0, 0)


CHAIN = """chain

7f1 LDG.E R0, desc[UR4][R2.64]
7f1 IMAD.WIDE R4, R0, 0x4, R2
7f1 LDG.E R6, desc[UR4][R4.64]
7f1 LDG.E R7, desc[UR4][R2.64+0x8]
7f1 ISETP.NE.AND P0, PT, R6, RZ, PT
7f1 @P0 BRA @60
7f1 LDGSTS.E [R8], desc[UR4][R2.64+0x10]
7f1 LDS R9, [R8]
7f1 HMMA.1688.F32.TF32 R12, R9, R10, RZ
7f1 STG.E desc[UR4][R2.64], R12
7f1 EXIT
"""


def test_loads_that_wait_for_one_another():
    """Through an address, through a branch, and through shared memory."""
    code = sass.parse(CHAIN)
    tally = Tally(path=list(code.blocks))
    assert dependent_loads(code, tally) == 3
    without = sass.parse(CHAIN.replace("HMMA.1688.F32.TF32 R12, R9, R10, RZ", "MOV R12, R0"))
    assert dependent_loads(without, tally) == 2


def test_a_warp_waits_for_its_barriers():
    """The second instruction waits for the first one's result, which barrier 0 announces."""
    waits = "k\n\n711 LDG.E R0, desc[UR4][R2.64]\nff1 IADD3 R1, R0, R0, RZ\n7f1 EXIT\n"
    code = sass.parse(waits)
    far = alone(code, Tally(path=[0])).cycles
    near = Tally(path=[0])
    near.near[0] = 1
    assert alone(code, near).cycles < far / 5
    apart = sass.parse(waits.replace("ff1", "7f1"))
    assert alone(apart, Tally(path=[0])).cycles < far / 5
