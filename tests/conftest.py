"""Property tests: the same examples in every `make test`, thousands of new ones in `make soak`."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

# Triton reads it when kernels are imported: without a GPU they are interpreted in this process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

examples = os.environ.get("SOAP_FAST_EXAMPLES")
settings.register_profile("test", max_examples=150, deadline=None, derandomize=True)
settings.register_profile("soak", max_examples=int(examples or 1), deadline=None, print_blob=True)
settings.load_profile("soak" if examples else "test")
