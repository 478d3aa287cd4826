"""What this install consists of and whether it works: the facts behind `python -m soap_fast`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

import soap_fast
from soap_fast import extension
from soap_fast.backends import NAMES, survey, unfit
from soap_fast.self_check import Choice, Verdict, check, check_here
from soap_fast.step.eigh import eigh_eager, eigh_native
from soap_fast.versions import triton_version, versions


def describe() -> dict[str, Any]:
    """Everything there is to say about this install, as plain values."""
    return {
        "versions": versions(),
        "extension": {
            "available": extension.available(),
            "reason": extension.reason(),
            "build": extension.build_info(),
        },
        "devices": devices(),
        "backends": [status._asdict() for status in survey()],
        "backend": _default(),
        "self_check": self_check(),
        "missing": missing(),
    }


def _default() -> str:
    """The backend that steps the best device by default."""
    choice = Choice(soap_fast.SOAP, "tf32x3")
    return min(map(choice, _torch_devices()), key=NAMES.index)


def devices() -> list[dict[str, Any]]:
    """The devices torch can use here."""
    found: list[dict[str, Any]] = [
        {"type": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "type": "cuda",
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    return found


def missing() -> list[dict[str, str]]:
    """Parts that are not there, what they would do, and how to get them."""
    absent = []
    reason = extension.reason()
    if reason is not None:
        absent.append({"part": "extension", "would": "step on the CPU", "how": reason})
    elif (how := extension.missing_cuda()) is not None:
        would = "compute first bases and refreshes on NVIDIA GPUs"
        absent.append({"part": "CUDA in the extension", "would": would, "how": how})
    if reason is None and (how := extension.missing_unchanged()) is not None:
        would = "look at all tensors of a step at once, and not one by one from Python"
        absent.append({"part": "comparisons in C++", "would": would, "how": how})
    if triton_version() is None:
        absent.append(
            {
                "part": "triton",
                "would": "run the step's fused kernels on NVIDIA GPUs",
                "how": "pip install triton; CUDA builds of torch for Linux bring it along",
            }
        )
    if not torch.cuda.is_available():
        how = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no GPU"
        absent.append({"part": "GPU", "would": "run the fused kernels", "how": how})
    return absent


def self_check() -> list[dict[str, Any]]:
    """Every backend on every device that it computes on, and the extension's operator.

    `default` tells whether a check is of what would run by default, and so must pass.
    """
    checks = []
    for device in _torch_devices():
        default = Choice(soap_fast.SOAP, "tf32x3")(device)
        for name in NAMES:
            if unfit(name, device) is None:
                verdict = _verdict(name, device)
                row = {"what": f"backend {name} on {device}", "ok": verdict.ok}
                checks.append({**row, "default": name == default, **asdict(verdict)})
    if extension.available():
        checks.append(_check("soap_fast::eigh on cpu", _eigh_error, 1e-4))
    return checks


def _verdict(name: str, device: torch.device) -> Verdict:
    """Kernels of ours on a GPU in a process of their own, and kept; all else here."""
    if device.type == "cuda" and name != "eager":
        return check(name, device, soap_fast.SOAP, "tf32x3")
    return check_here(name, str(device), soap_fast.SOAP)


def _torch_devices() -> list[torch.device]:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in gpus)]


def _check(what: str, measure: Callable[[], float], tolerance: float) -> dict[str, Any]:
    row = {"what": what, "default": True, "tolerance": tolerance, "error": None, "problem": None}
    try:
        error = measure()
    except Exception as problem:  # whatever it is belongs into the report
        return {**row, "ok": False, "problem": f"{type(problem).__name__}: {problem}"}
    return {**row, "ok": error <= tolerance, "error": error}


def _eigh_error() -> float:
    normal = _seeded((3, 20, 20), 0).float()
    stacks, chosen = [normal @ normal.mT], [torch.arange(3, dtype=torch.int32, device="cpu")]
    (found,), _ = eigh_native(stacks, chosen)
    (expected,), _ = eigh_eager(stacks, chosen)
    return float((found - expected).abs().max() / expected.abs().max())


def _seeded(shape: tuple[int, ...], seed: int) -> torch.Tensor:  # float64, on the CPU
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)
