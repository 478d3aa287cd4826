"""What the compiler made of a kernel's accesses and products, read from its own words."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from soap_fast.backends.triton.launch.launcher import kernel

ACCESS = re.compile(
    r"(?:tt\.load|tt\.store|async_copy_global_to_local)\b.*?"
    r"tensor<(\d+)x(\d+)x!tt\.ptr<f32>, (#\w+)>"
)
DOT = re.compile(r"(%[\w#]+) = tt\.dot %[\w#]+, %[\w#]+, (%[\w#]+)")
LOOP = re.compile(r"iter_args\((.*?)\)")


def unordered(ttgir: str) -> int:
    """Accesses of tiles [rows, columns] for which no axis was known to lie along memory.

    The compiler then gives each lane of a warp a row, and so a sector, of its own.
    """
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.blocked[^\n]*)", ttgir, re.M))
    found = 0
    for rows, _, name in ACCESS.findall(ttgir):
        layout = layouts.get(name, "")
        by_rows = "order = [0, 1]" in layout
        found += by_rows and "sizePerThread = [1, 1]" in layout and int(rows) > 1
    return found


def chained(ttir: str) -> int:
    """Products that another one goes on from, in a sum that did not begin with them.

    Three products of tf32x3 in one running sum are wrong on sm_90 and sm_103, see
    triton_kernels/product.py.
    """
    begins: dict[str, str] = {}  # by product, what the first one of its chain goes on from
    found = 0
    for line in ttir.splitlines():  # in order: other regions use the same names again
        for loop in LOOP.findall(line):
            for sum_of_loop in re.findall(r"(%[\w#]+) =", loop):
                begins.pop(sum_of_loop, None)
        for name, start in DOT.findall(line):
            begins[name] = begins.get(start, start)
            found += start in begins and not begins[name].startswith("%cst")
    return found


def store_bytes(op: str, ptx: str) -> int | None:
    """Bytes of the narrowest store of a tile, by the kernels' own lines: stores with a mask."""
    files = {
        n: Path(path).name for n, path in re.findall(r'^\s*\.file\s+(\d+) "([^"]*)"', ptx, re.M)
    }
    folder = _source(op).parent
    lines = {
        (path.name, number)
        for path in folder.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"tl\.store\(.*mask=", line)
    }
    widths, place = [], ("", 0)
    for statement in ptx.splitlines():
        if loc := re.match(r"\s*\.loc\s+(\d+) (\d+)", statement):
            place = files.get(loc[1], ""), int(loc[2])
        elif place in lines and (
            store := re.search(r"st\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfu](\d+)", statement)
        ):
            widths.append(int(store[1] or 1) * int(store[2]) // 8)
    return min(widths, default=None)


def operand_load(op: str, ptx: str) -> int | None:
    """Bytes of the narrowest load of an operand: of what kernels name a and b, asynchronous too.

    Other loads are of tables and, in epilogues, of factors and moments.
    """
    text = _source(op).read_text().splitlines()
    loads = re.compile(r"\b[ab] = tl\.load\(")
    lines = {number for number, line in enumerate(text, 1) if loads.search(line)}
    widths, line = [], 0
    for statement in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+\d+ (\d+)", statement):
            line = int(place[1])
        elif copy := re.search(
            r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", statement
        ):
            widths.append(int(copy[1], 0))
        elif line in lines and (
            load := re.search(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfu](\d+)", statement)
        ):
            widths.append(int(load[1] or 1) * int(load[2]) // 8)
    return min(widths, default=None)


def _source(op: str) -> Path:
    return Path(inspect.getsourcefile(kernel(op).fn) or "")
