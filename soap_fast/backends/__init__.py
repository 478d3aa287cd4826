"""Who carries a step out. Asked for by name: that backend or an error. For none: the best."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from soap_fast import extension
from soap_fast.backends.base import Backend, BestOn
from soap_fast.backends.eager import EagerBackend
from soap_fast.backends.native import NativeBackend
from soap_fast.backends.requirements import missing_for_triton, unfit_for_triton
from soap_fast.backends.triton.backend import PRECISIONS, Precision, TritonBackend
from soap_fast.backends.triton.rounds import WORKSPACE

__all__ = [
    "NAMES",
    "PRECISIONS",
    "WORKSPACE",
    "Backend",
    "BackendStatus",
    "BestOn",
    "Precision",
    "choose",
    "survey",
    "unfit",
]

NAMES = ("triton", "native", "eager")  # the best first


class BackendStatus(NamedTuple):
    """A backend, whether it can run here, and why or why not."""

    name: str
    usable: bool
    reason: str


def survey() -> list[BackendStatus]:
    """Every backend of this version, the best first."""
    native = (
        "the extension takes float32 steps on the CPU, and computes first bases and refreshes on "
        "the CPU and, where it was built with CUDA, on NVIDIA GPUs; plain torch does the rest"
    )
    triton = "fused kernels take the step in a few launches on NVIDIA GPUs"
    unusable = missing_for_triton()
    return [
        BackendStatus("triton", unusable is None, unusable or triton),
        BackendStatus("native", extension.available(), extension.reason() or native),
        BackendStatus("eager", True, "plain torch, runs on every device"),
    ]


def unfit(name: str, device: torch.device) -> str | None:
    """Why a backend computes nothing on a device by default, whatever it does by name; or None."""
    if name == "eager":
        return None
    if name == "triton":
        return missing_for_triton() or unfit_for_triton(device)
    if device.type == "cpu":
        return extension.reason()
    if device.type != "cuda" or torch.version.hip:
        return "the extension has kernels for CPUs and NVIDIA GPUs alone"
    return extension.missing_cuda()


def choose(
    name: str | None,
    input_precision: Precision = "tf32x3",
    best_on: BestOn | None = None,
    refresh_workspace: int = WORKSPACE,
) -> Backend:
    """The backend of this name, or for None one that leaves each device to the best there.

    Args:
        name: of a backend, or None.
        input_precision: of Triton's products; other backends have none to choose.
        best_on: names the best backend of a device, for None; without it the one that is fit.
        refresh_workspace: bytes of Triton's for tensors that are refreshed together.

    Raises:
        ValueError: no backend has this name, or it cannot run here; no precision has this one; a
            workspace that is no number of bytes.
    """
    if type(refresh_workspace) is not int or refresh_workspace < 1:
        rule = f"bytes, a whole number from 1 on, {WORKSPACE} by default"
        raise ValueError(f"refresh_workspace={refresh_workspace!r} is not a number of {rule}")
    if input_precision not in PRECISIONS:
        rule = f"one of {PRECISIONS}: 'tf32x3' has float32's accuracy on tensor cores"
        raise ValueError(f"input_precision={input_precision!r} is not {rule}")
    if name is None:
        return _automatic(input_precision, best_on or best_fit, refresh_workspace)
    statuses = {status.name: status for status in survey()}
    if name not in statuses:
        rule = "None takes the best that runs here"
        raise ValueError(f"backend={name!r} is not one of {[*statuses]}: {rule}")
    if not statuses[name].usable:
        raise ValueError(f"backend={name!r} cannot run here: {statuses[name].reason}")
    if name == "triton":
        return TritonBackend(input_precision, refresh_workspace=refresh_workspace)
    return NativeBackend(("cpu", "cuda")) if name == "native" else EagerBackend()


def best_fit(device: torch.device) -> str:
    """The best backend that is fit for a device, checked or not."""
    return next(name for name in NAMES if unfit(name, device) is None)


def _automatic(input_precision: Precision, best_on: BestOn, workspace: int) -> Backend:
    # Devices themselves are asked once there are tensors on them: a model on the CPU must not
    # initialise CUDA, which a forked process cannot. Interpreted kernels are for tests that ask.
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        return TritonBackend(input_precision, best_on=best_on, refresh_workspace=workspace)
    if extension.available():
        return NativeBackend(("cpu", "cuda"), best_on)
    return EagerBackend()
