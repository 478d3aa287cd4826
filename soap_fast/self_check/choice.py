"""Which backend steps the tensors of a device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch

from soap_fast.backends import unfit
from soap_fast.self_check.checking import check, is_off
from soap_fast.self_check.problem import MakeOptimizer
from soap_fast.versions import versions

BEST_FIRST = ("triton", "native")  # then eager, which needs no kernels of ours


class Choice:
    """The best backend of each device whose steps are right there."""

    def __init__(self, make: MakeOptimizer, precision: str) -> None:
        """See `check`."""
        self.make, self.precision = make, precision
        self._chosen: dict[torch.device, str] = {}
        self.passed_over: list[str] = []  # backends that failed, where and how, for people

    def __call__(self, device: torch.device) -> str:
        """Name of the backend. The first time on a kind of CUDA device it is checked there.

        A backend that fails its check is named by a warning, and the next best one is taken.
        """
        if device not in self._chosen:
            self._chosen[device] = self._best(device)
        return self._chosen[device]

    def _best(self, device: torch.device) -> str:
        for name in BEST_FIRST:
            if unfit(name, device) is None and (
                device.type != "cuda" or self.is_right(name, device, "is not used there")
            ):
                return name
        return "eager"

    def prepare(self, devices: Iterable[torch.device], requested: str | None) -> None:
        """Check what will step there now, at construction, rather than within the first step.

        Args:
            requested: the backend that was asked for by name, which runs in any case.
        """
        for device in devices:
            if device.type == "cuda" and requested is None:
                self(device)
            elif device.type == "cuda" and requested in BEST_FIRST:
                self.is_right(requested, device, "runs there all the same, as it was asked for")

    def is_right(self, name: str, device: torch.device, then: str) -> bool:
        """Whether a backend's steps are right on a CUDA device; a warning says where not.

        Args:
            then: what becomes of the backend where they are wrong, for the warning.
        """
        if is_off():
            return True
        verdict = check(name, device, self.make, self.precision)
        if not verdict.ok:
            self.passed_over.append(f"{name} failed its self-check on {device}: {verdict}")
            of = ", ".join(f"{k} {v}" for k, v in versions().items() if v)
            warnings.warn(
                f"backend '{name}' failed its self-check on {torch.cuda.get_device_name(device)} "
                f"({of}) and {then}: {verdict}. SOAP_FAST_SELF_CHECK=always checks again, "
                "`python -m soap_fast` shows all backends",
                RuntimeWarning,
                stacklevel=2,
            )
        return verdict.ok
