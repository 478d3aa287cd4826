"""What Triton kernels need of a machine and of a device."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

LEAST_CAPABILITY = (8, 0)  # of what the kernels are compiled and checked for


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels, which then run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def missing_for_triton() -> str | None:
    """Why the kernels cannot run here and how to change that; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton; CUDA builds of torch bring it along"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU; TRITON_INTERPRET=1 runs kernels on the CPU, slowly, for tests"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    reasons = [unfit_for_triton(device) for device in devices]
    if all(reasons):
        return reasons[0]
    return missing_to_build_with()


def unfit_for_triton(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None if they can."""
    if device.type != "cuda" or torch.version.hip:  # AMD's GPUs are "cuda" too
        other = "HIP" if torch.version.hip else device.type
        return f"the kernels are for NVIDIA GPUs, not for {other}"
    try:
        major, minor = torch.cuda.get_device_capability(device)
    except RuntimeError as error:  # in a process that was forked after CUDA was used
        return f"CUDA cannot be used in this process: {str(error).splitlines()[0]}"
    if (major, minor) < LEAST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and the "
            "kernels need 8.0 (Ampere) or higher"
        )
    return None


def missing_to_build_with() -> str | None:
    """What Triton lacks to compile its own C stubs at run time; None if nothing.

    It takes the compiler in CC, as one word, else gcc, else clang, and this Python's headers.
    """
    given = os.environ.get("CC")
    if not any(map(shutil.which, ("gcc", "clang") if given is None else (given,))):
        return (
            f"Triton finds no C compiler ({'gcc, clang' if given is None else repr(given)}), which "
            "it needs at run time: install gcc or name one in CC, without options"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Triton finds no Python.h, which it needs at run time: install python3-dev"
    return None
