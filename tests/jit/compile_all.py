"""Every kernel of steps of every kind, compiled as a launch compiles it; a line of JSON each.

    python tests/jit/compile_all.py SM --precision tf32x3 --dtype float32

Without TRITON_INTERPRET; the repository and its tests on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import stub_driver
import torch
import triton
from steps import KINDS

from bench.cost.aot import usage
from soap_fast.backends.triton.launch.launcher import kernel
from soap_fast.backends.triton.launch.tuning import TUNING

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sm", type=int)
parser.add_argument("--precision", nargs="+", required=True)
parser.add_argument("--dtype", nargs="+", required=True)
options = parser.parse_args()

torch.set_num_threads(1)
stub = stub_driver.install(options.sm)
for kind in KINDS:
    for precision in options.precision:
        for dtype in options.dtype:
            stub.launched.clear()
            kind(getattr(torch, dtype), precision)
            launched = sorted(set(stub.launched))
            print(json.dumps({"kind": kind.__name__, "launched": launched}), flush=True)
for op in TUNING:
    names = kernel(op).arg_names
    for compiled in kernel(op).device_caches[options.sm][0].values():
        constants = {names[path[0]]: value for path, value in compiled.src.constants.items()}
        found = usage(compiled.asm["cubin"], Path(triton.__file__).parent)
        row = {"kernel": op, "sm": options.sm, "constants": constants}
        print(json.dumps({**row, "shared_bytes": compiled.metadata.shared, **found}), flush=True)
