"""Kernels compiled ahead of time: by which types, and what is read from the compiler's words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench import recorded
from bench.cost import aot
from bench.cost.ptx import chained, store_bytes, unordered
from soap_fast.backends.triton.launch.launcher import Launch, kernel
from soap_fast.backends.triton.launch.tuning import TUNING

LAYOUT = (
    "#blocked = #ttg.blocked<{{sizePerThread = [{}], threadsPerWarp = [{}], "
    "warpsPerCTA = [1, 4], order = [{}]}}>"
)
STORE = "    tt.store %p, %v, %m : tensor<64x64x!tt.ptr<f32>, #blocked> loc(#loc)"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (("1, 1", "32, 1", "0, 1"), 1),  # each lane has a row
        (("4, 1", "16, 2", "0, 1"), 0),
        (("1, 4", "2, 16", "1, 0"), 0),
    ],
)
def test_a_tile_is_unordered_where_each_lane_has_a_row(layout, expected):
    assert unordered(f"{LAYOUT.format(*layout)}\n{STORE}\n") == expected


FRESH = """
%cst = arith.constant dense<0.000000e+00> : tensor<64x64xf32>
%r = scf.for %i = %a to %b step %c iter_args(%acc = %cst) -> (tensor<64x64xf32>) {
  %p = tt.dot %x, %y, %cst, inputPrecision = tf32 : tensor<64x32xf32>
  %p_1 = tt.dot %x, %z, %p, inputPrecision = tf32 : tensor<64x32xf32>
  %s = arith.addf %acc, %p_1 : tensor<64x64xf32>
"""


def test_three_products_in_a_running_sum_are_a_chain():
    assert chained(FRESH) == 0
    assert chained(FRESH.replace("%y, %cst", "%y, %acc")) == 1
    alone = "%p = tt.dot %x, %y, %acc, inputPrecision = ieee : tensor<64x32xf32>"
    assert chained(alone) == 0
    other_loop = FRESH.splitlines()[2].replace("%acc =", "%p =")  # whose sum has a product's name
    assert (
        chained("\n".join([alone, other_loop, alone.replace("%acc", "%p").replace("%p =", "%q =")]))
        == 0
    )


def test_a_store_of_a_tile_is_told_from_one_of_a_number():
    from soap_fast.triton_kernels import settle

    text = Path(settle.__file__).read_text().splitlines()
    line = next(n for n, code in enumerate(text, 1) if "tl.store(" in code)
    ptx = f'.file\t1 "kernels/settle.py"\n.loc\t1 {line} 9\n@%p1 st.global.v4.b32 [%rd1], {{}};'
    assert store_bytes("settle", ptx) == 16
    assert store_bytes("settle", ptx.replace("v4.", "")) == 4
    assert store_bytes("settle", ptx.replace(f"1 {line} 9", "1 1 9")) is None


GOOD = {
    "kernel": "rotate", "options": "", "constants": {}, "sm": 86,
    "spill_bytes": 0, "stack_bytes": 0, "load_bytes": 16, "store_bytes": 16,
    "unordered": 0, "chained": 0, "shared_bytes": 99 * 1024,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("spill_bytes", 8, "spills 8 bytes"),
        ("load_bytes", 4, "loads operands 4 bytes"),
        ("store_bytes", 4, "stores tiles 4 bytes"),
        ("unordered", 1, "across memory"),
        ("chained", 1, "running sum"),
        ("shared_bytes", 100 * 1024, "shared memory"),
    ],
)
def test_what_must_not_be_is_complained_of(field, value, words):
    assert not list(aot.complaints(GOOD))
    assert any(words in complaint for complaint in aot.complaints({**GOOD, field: value}))


def test_every_parameter_of_every_kernel_has_the_type_that_a_step_binds(monkeypatch):
    """Found without the extension, which compiling ahead of time has never needed."""
    monkeypatch.setattr(recorded, "refresh_launches", lambda *_: pytest.fail("asked the extension"))
    aot.signatures.cache_clear()
    found = aot.signatures()
    assert set(found) == set(TUNING)
    for op, constants in aot.configurations():
        assert {*found[op], *constants} == set(kernel(op).arg_names), op
    assert found["norm"] == {
        "tensors": "*i64",
        "option_rows": "*fp64",
        "scalars": "*fp32",
        "directions": "*fp32",
        "n_tensors": "i32",
    }
    assert found["gather"]["tiles"] == "*i32"


def test_a_renamed_parameter_keeps_its_type(monkeypatch):
    renamed = SimpleNamespace(arg_names=["anything", "at", "all", "BLOCK"])
    monkeypatch.setattr(aot, "kernel", lambda op: renamed)
    doubles, whole = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    launch = Launch("norm", (doubles, whole, 3), {"BLOCK": 16}, 3)
    assert aot.signature(launch) == {"anything": "*fp64", "at": "*i64", "all": "i32"}


def test_what_does_not_fit_is_an_error(monkeypatch):
    launch = Launch("norm", (torch.zeros(1),), dict(TUNING["norm"].constants), 1)
    with pytest.raises(RuntimeError, match=r"norm has the parameters tensors, .* 1 arg"):
        aot.signature(launch)
    aot.signatures.cache_clear()
    known = list(aot.every_launch())
    monkeypatch.setattr(aot, "every_launch", lambda: known[:-1])
    with pytest.raises(RuntimeError, match="no recorded step launches grouped_matmul"):
        aot.signatures()
    other = Launch("clock", tuple(range(8)), dict(TUNING["clock"].constants), 1)
    monkeypatch.setattr(aot, "every_launch", lambda: [*known, other])
    with pytest.raises(RuntimeError, match="clock is launched with"):
        aot.signatures()
