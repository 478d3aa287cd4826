"""What is read from the compiler's words: order and width of accesses, chains of products."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.measuring.aot import complaints
from bench.measuring.layouts import chained, store_bytes, unordered

LAYOUT = (
    "#blocked = #ttg.blocked<{{sizePerThread = [{}], threadsPerWarp = [{}], "
    "warpsPerCTA = [1, 4], order = [{}]}}>"
)
BY_LANES = LAYOUT.format("1, 1", "32, 1", "0, 1")
ALONG = LAYOUT.format("4, 1", "16, 2", "0, 1")
BY_ROWS = LAYOUT.format("1, 4", "2, 16", "1, 0")
STORE = "    tt.store %p, %v, %m : tensor<64x64x!tt.ptr<f32>, #blocked> loc(#loc)"


@pytest.mark.parametrize(("layout", "expected"), [(BY_LANES, 1), (ALONG, 0), (BY_ROWS, 0)])
def test_a_tile_is_unordered_where_each_lane_has_a_row(layout, expected):
    assert unordered(f"{layout}\n{STORE}\n") == expected


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
    assert chained("%p = tt.dot %x, %y, %acc, inputPrecision = ieee : tensor<64x32xf32>") == 0


def test_a_store_of_a_tile_is_told_from_one_of_a_number():
    from soap_fast.triton_kernels import settle

    text = Path(settle.__file__).read_text().splitlines()
    line = next(n for n, code in enumerate(text, 1) if "tl.store(" in code)
    ptx = f'.file\t1 "kernels/settle.py"\n.loc\t1 {line} 9\n@%p1 st.global.v4.b32 [%rd1], {{}};'
    assert store_bytes("settle", ptx) == 16
    assert store_bytes("settle", ptx.replace("v4.", "")) == 4
    assert store_bytes("settle", ptx.replace(f"1 {line} 9", "1 1 9")) is None


GOOD = {
    "kernel": "rotate", "options": "", "sm": 86, "spill_bytes": 0, "stack_bytes": 0,
    "load_bytes": 16, "store_bytes": 16, "unordered": 0, "chained": 0, "shared_bytes": 99 * 1024,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("spill_bytes", 8, "spills 8 bytes"),
        ("store_bytes", 4, "stores tiles 4 bytes"),
        ("unordered", 1, "across memory"),
        ("chained", 1, "running sum"),
        ("shared_bytes", 100 * 1024, "shared memory"),
    ],
)
def test_what_must_not_be_is_complained_of(field, value, words):
    assert not list(complaints(GOOD))
    assert any(words in complaint for complaint in complaints({**GOOD, field: value}))
