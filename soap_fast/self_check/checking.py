"""A backend checked on a CUDA device: once for a kind of device and a set of versions."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import torch

from soap_fast.self_check.isolated import LIMIT, check_isolated
from soap_fast.self_check.problem import TOLERANCE, MakeOptimizer, largest_error
from soap_fast.self_check.verdict import Kept, Verdict
from soap_fast.versions import digest, versions

SETTING = "SOAP_FAST_SELF_CHECK"
SETTINGS = ("once", "always", "off")

_known: dict[tuple[str, int, str], Verdict] = {}  # in this process
_one_at_a_time = threading.RLock()
_underway = threading.local()  # the check's own steps ask for no check


def setting() -> str:
    """What the user wants: a check once and kept, one per process, or none.

    Raises:
        ValueError: the environment variable says something else.
    """
    value = os.environ.get(SETTING, SETTINGS[0]).lower()
    if value not in SETTINGS:
        raise ValueError(f"{SETTING}={value} is not one of {SETTINGS}: unset it to get 'once'")
    return value


def is_off() -> bool:
    return getattr(_underway, "here", False) or setting() == "off"


def check(name: str, device: torch.device, make: MakeOptimizer, precision: str) -> Verdict:
    """The verdict on a backend on a CUDA device; the check runs where there is none yet.

    Args:
        name: of the backend.
        make: `soap_fast.SOAP`.
        precision: of products, as `input_precision`. Plain tf32 is not float32, and its kernels
            are judged by those of tf32x3.
    """
    precision = "tf32x3" if precision == "tf32" else precision
    index = torch.cuda.current_device() if device.index is None else device.index
    with _one_at_a_time:
        key = (name, index, precision)
        if key not in _known:
            _known[key] = _kept_or_new(name, index, make, precision)
        return _known[key]


def facts(name: str, index: int, precision: str) -> dict[str, Any]:
    """What a verdict holds for."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "backend": name,
        "input_precision": precision,
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        **versions(),
        "code": digest(),
    }


def _kept_or_new(name: str, index: int, make: MakeOptimizer, precision: str) -> Verdict:
    kept = Kept(facts(name, index, precision))
    renew = setting() == "always"
    verdict = None if renew else kept.read()
    if verdict is not None:
        return verdict
    with kept.locked(LIMIT + 10):
        verdict = None if renew else kept.read()  # by the process that held the lock
        if verdict is None:
            device = kept.facts["device"]
            print(
                f"soap_fast: checking backend '{name}' on {device}, once for these versions ...",
                file=sys.stderr,
                flush=True,
            )
            start = time.monotonic()
            verdict = _new(name, index, make, precision)
            seconds = time.monotonic() - start
            said = "good" if verdict.ok else "FAILED"
            print(f"soap_fast: {said}, {seconds:.0f} s: {verdict}", file=sys.stderr, flush=True)
            if verdict.holds:
                kept.write(verdict)
    return verdict


def _new(name: str, index: int, make: MakeOptimizer, precision: str) -> Verdict:
    arguments = ("--check", name, "--device", f"cuda:{index}", "--input-precision", precision)
    verdict = check_isolated(arguments)
    return check_here(name, f"cuda:{index}", make, precision) if verdict is None else verdict


def check_here(name: str, device: str, make: MakeOptimizer, precision: str = "tf32x3") -> Verdict:
    """The same in this process."""
    _underway.here = True
    try:
        error = largest_error(make, name, device, input_precision=precision)
    except Exception as problem:  # whatever it is, the backend does not work
        said = str(problem).strip().partition("\n")[0]
        return Verdict(None, TOLERANCE, f"{type(problem).__name__}: {said}")
    finally:
        _underway.here = False
    return Verdict(error, TOLERANCE)
