"""Every Triton kernel compiled ahead of time, with what the compiler made of it; needs no GPU."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import shapes
from bench.command import show
from bench.cost.ptx import chained, operand_load, store_bytes, unordered
from bench.files import BadInput
from bench.recorded import record
from soap_fast.backends.triton.launch.launcher import Launch, RecordingLauncher, kernel
from soap_fast.backends.triton.launch.tuning import TUNING, constants_on
from soap_fast.backends.triton.ops.grouped_matmul import grouped_matmul_triton
from soap_fast.step.refresh import LEFT_OUT, REFRESHED

COLUMNS = (
    "kernel", "sm", "options", "registers", "shared_bytes", "stack_bytes", "spill_bytes",
    "load_bytes", "store_bytes", "unordered", "chained",
)  # fmt: skip
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SMALL, SMALL_SHARED = (86, 89, 120), 99 * 1024  # bytes of shared memory of a program there
OUTCOMES = {"count": {"LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}}
STORED_WIDE = ("rotate", "adam", "permute", "settle")  # what stores planes and moments alone
# Accesses of any strides, and look-ups in small bases and in the sums that gather leaves of them.
STRIDED = {"derive": 5, "fold_gram": 1}
PRODUCTS = (
    "rotate",
    "settle",
    "gram",
    "grouped_matmul",
)  # what streams operands through a loop of products


def run(
    precisions: Sequence[str], architectures: Sequence[int], check: bool, target: str | None
) -> int:
    """`kernels --aot`: a row for each configuration; 1 where something must not be."""
    check_compiles()
    results = [
        compiled(op, constants, sm)
        for op, constants in configurations()
        if constants.get("PRECISION", precisions[0]) in precisions
        for sm in architectures
    ]
    show(results, COLUMNS, target, "kernels --aot")
    wrong = [complaint for result in results for complaint in complaints(result)]
    for complaint in wrong if check else ():
        print(f"python -m bench kernels: {complaint}", file=sys.stderr)
    return int(check and bool(wrong))


def check_compiles() -> None:
    """Whether Triton is here and compiles.

    Raises:
        BadInput: it is not, or interprets.
    """
    try:
        import triton
    except ImportError:
        raise BadInput("triton is not installed: pip install triton") from None
    if triton.knobs.runtime.interpret:
        raise BadInput("TRITON_INTERPRET is set: one process cannot interpret and compile")


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every op with every set of constants that a step can ask for."""
    for op, tuning in TUNING.items():
        fixed = {**tuning.constants, **OUTCOMES.get(op, {})}
        arguments = kernel(op).arg_names
        if "PRECISION" not in arguments:
            yield op, fixed
            continue
        lowest = ("tf32x3", "ieee") if op == "gram" else ("tf32x3", "ieee", "tf32")
        for precision in lowest:
            for extra in ({"ADAM": False}, {"ADAM": True}) if "ADAM" in arguments else ({},):
                yield op, {**fixed, "PRECISION": precision, **extra}


def complaints(result: dict[str, Any]) -> Iterator[str]:
    where = f"{result['kernel']} ({result['options']}) for sm_{result['sm']}"
    spilled = max(result["spill_bytes"], result["stack_bytes"])
    if spilled:
        yield f"{where} spills {spilled} bytes"
    if result["load_bytes"] not in (None, 16):
        yield f"{where} loads operands {result['load_bytes']} bytes at a time"
    if result["store_bytes"] not in (None, 16):
        yield f"{where} stores tiles {result['store_bytes']} bytes at a time"
    if result["unordered"] > STRIDED.get(result["kernel"], 0):
        yield f"{where} walks {result['unordered']} tiles across memory"
    if result["chained"]:
        yield f"{where} chains {result['chained']} products through a running sum"
    if result["sm"] in SMALL and result["shared_bytes"] > SMALL_SHARED:
        yield f"{where} takes {result['shared_bytes']} bytes of shared memory"


def binary(op: str, constants: dict[str, Any], sm: int) -> Any:
    """One configuration compiled for one architecture, as Triton has it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel(op)
    constants = constants_on(op, constants, sm)
    bound = signatures()[op]
    signature, constexprs, attributes = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name], constexprs[(place,)] = "constexpr", constants[name]
            continue
        signature[name] = bound[name]
        if bound[name].startswith("*"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs, attributes)
    options = {"num_warps": TUNING[op].num_warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def compiled(op: str, constants: dict[str, Any], sm: int) -> dict[str, Any]:
    """Compile one configuration for one architecture and read what came out."""
    made = binary(op, constants, sm)
    shown = {k: v for k, v in constants.items() if k in ("PRECISION", "ADAM")}
    return {
        "kernel": op,
        "sm": sm,
        "options": " ".join(str(v) if k == "PRECISION" else k for k, v in shown.items() if v),
        "constants": constants,
        "num_warps": TUNING[op].num_warps,
        "shared_bytes": made.metadata.shared,
        **usage(made.asm["cubin"], triton_folder()),
        "load_bytes": operand_load(op, made.asm["ptx"]) if op in PRODUCTS else None,
        "store_bytes": store_bytes(op, made.asm["ptx"]) if op in STORED_WIDE else None,
        "unordered": unordered(made.asm["ttgir"]),
        "chained": chained(made.asm["ttir"]),
    }


def triton_folder() -> Path:
    import triton

    return Path(triton.__file__).parent


def usage(cubin: bytes, triton_folder: Path) -> dict[str, int]:
    """Registers, stack and spills, by cuobjdump, which ships inside Triton."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.fspath(tool), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump reports in other words: {done.stdout}")
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "stack_bytes": stack, "spill_bytes": local}


# Types of every kernel's arguments, as the optimizer's own launches bind them --------------------


@functools.cache
def signatures() -> dict[str, dict[str, str]]:
    """By op and parameter, constants apart, the type by Triton's own rule, e.g. `*fp32`.

    Raises:
        RuntimeError: no step launches an op, or a launch does not fit its kernel's parameters, or
            two launches of an op differ.
    """
    found: dict[str, dict[str, str]] = {}
    for launch in every_launch():
        types = signature(launch)
        if found.setdefault(launch.op, types) != types:
            raise RuntimeError(f"{launch.op} is launched with {found[launch.op]} and with {types}")
    if missing := set(TUNING) - set(found):
        raise RuntimeError(f"no recorded step launches {', '.join(sorted(missing))}")
    return found


def every_launch() -> Iterator[Launch]:
    """Those of a step that ends with a refresh, of normalised updates, and a refresh's products."""
    recorded = record(shapes.load("hyperprior"))
    recorded.refreshing_step()
    yield from recorded.launcher.launched
    yield recorded.engine.norm
    launcher = RecordingLauncher()
    x = torch.empty(1, 4, 4)
    grouped_matmul_triton([x], [x.mT], [x], launcher, "ieee")
    yield from launcher.launched


def signature(launch: Launch) -> dict[str, str]:
    """Of one launch: whatever parameters are called, its arguments are in their order."""
    from triton.runtime.jit import mangle_type

    names = [name for name in kernel(launch.op).arg_names if name not in launch.constants]
    if len(names) != len(launch.arguments):
        raise RuntimeError(
            f"{launch.op} has the parameters {', '.join(names)} beside its constants, "
            f"and a step binds {len(launch.arguments)} arguments to them"
        )
    return {n: mangle_type(a) for n, a in zip(names, launch.arguments, strict=True)}
