"""Every kernel alone, in its step or by itself: what it found in memory, what it wrote."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from carried import carried
from kernel_cases import launched
from launched import LaunchedAlone
from tf32 import PRECISIONS

from soap_fast.backends.triton.backend import interpreted

# Interpreted, tf32 runs the code of tf32x3, and is held to a wider bound: `make soak` has it too.
ALL = torch.cuda.is_available() or "SOAP_FAST_EXAMPLES" in os.environ


@pytest.fixture(scope="session")
def kernels() -> None:
    """Kernels run here, on a GPU or interpreted."""
    if sys.platform != "linux" or not (torch.cuda.is_available() or interpreted()):
        pytest.skip("Triton is for Linux, and without a GPU interprets under TRITON_INTERPRET=1")


@pytest.fixture(params=PRECISIONS if ALL else [p for p in PRECISIONS if p != "tf32"])
def alone(request: pytest.FixtureRequest, kernels: None) -> LaunchedAlone:
    """A step of many tensors, and memory before and behind each of its launches."""
    return launched(request.param)


@pytest.fixture
def moved(kernels: None) -> LaunchedAlone:
    """An engine of tensors whose moments are random; the last tensor's are not carried."""
    return carried()
