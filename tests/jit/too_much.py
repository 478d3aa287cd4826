"""A kernel on an architecture with less shared memory than it takes; prints what happens as JSON.

python tests/jit/too_much.py
"""

from __future__ import annotations

import json

import stub_driver
import torch
from steps import plain
from triton.runtime.errors import OutOfResources

stub_driver.SHARED[90] = 1  # byte
stub = stub_driver.install(90)
try:
    plain(torch.float32, "tf32x3")
except OutOfResources as error:
    print(json.dumps({"error": str(error), "launched": stub.launched}))
