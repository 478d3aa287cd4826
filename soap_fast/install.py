"""What this install consists of and whether it works: the facts behind `python -m soap_fast`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import soap_fast
from soap_fast import extension
from soap_fast.backends import best, survey
from soap_fast.eigh import eigh_eager, eigh_native

# What float32 may differ by from float64, as a share of the displacement: the recorded
# trajectories of the reference, perturbed by 1e-7, part by up to 7e-5.
TOLERANCE = 5e-4


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
        "backend": best(survey()),
        "self_check": self_check(),
        "missing": missing(),
    }


def versions() -> dict[str, str | None]:
    return {
        "soap_fast": soap_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "triton": _triton_version(),
    }


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
        absent.append({"part": "extension", "would": "batch the eigenbases", "how": reason})
    elif not (extension.build_info() or {}).get("cuda"):
        because = (extension.build_info() or {}).get("cuda_missing_because")
        absent.append(
            {
                "part": "CUDA in the extension",
                "would": "batch the eigenbases on NVIDIA GPUs",
                "how": f"{because}; install the CUDA toolkit and reinstall with SOAP_FAST_CUDA=ON",
            }
        )
    if _triton_version() is None:
        absent.append(
            {
                "part": "triton",
                "would": "run the step's fused kernels on NVIDIA GPUs",
                "how": "pip install triton; CUDA builds of torch for Linux bring it along",
            }
        )
    if not torch.cuda.is_available():
        how = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no GPU"
        absent.append({"part": "GPU", "would": "run the step there", "how": how})
    return absent


def self_check() -> list[dict[str, Any]]:
    """Twelve float32 calls per type of device against float64; the extension against its twin."""
    kinds = dict.fromkeys(str(device["type"]) for device in devices())
    checks = [_check(f"step on {kind}", partial(_step_error, kind), TOLERANCE) for kind in kinds]
    if extension.available():
        checks.append(_check("soap_fast::eigh on cpu", _eigh_error, 1e-4))
    return checks


def _check(what: str, measure: Callable[[], float], tolerance: float) -> dict[str, Any]:
    try:
        error = measure()
    except Exception as problem:  # whatever it is belongs into the report
        said = f"{type(problem).__name__}: {problem}"
        return {"what": what, "ok": False, "tolerance": tolerance, "problem": said}
    return {"what": what, "ok": error <= tolerance, "tolerance": tolerance, "error": error}


def _step_error(device: str) -> float:
    start = _seeded((12, 12), 0)
    reached = _train(start.to(device, torch.float32)).to("cpu", torch.float64)
    expected = _train(start)
    return float((reached - expected).abs().max() / (expected - start).abs().max())


def _train(start: torch.Tensor) -> torch.Tensor:
    """Where a parameter is after twelve calls, one of them with a refresh."""
    param = torch.nn.Parameter(start.clone())
    optimizer = soap_fast.SOAP([param], precondition_frequency=10)
    for call in range(12):
        param.grad = _seeded((12, 12), 1 + call).to(param)
        optimizer.step()
    return param.detach()


def _eigh_error() -> float:
    normal = _seeded((3, 20, 20), 0).float()
    stacks, chosen = [normal @ normal.mT], [torch.arange(3, dtype=torch.int32, device="cpu")]
    (found,), _ = eigh_native(stacks, chosen)
    (expected,), _ = eigh_eager(stacks, chosen)
    return float((found - expected).abs().max() / expected.abs().max())


def _seeded(shape: tuple[int, ...], seed: int) -> torch.Tensor:  # float64, on the CPU
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)


def _triton_version() -> str | None:
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "of another distribution"
