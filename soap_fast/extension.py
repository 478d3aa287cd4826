"""The C++/CUDA extension: whether it is there, what it was built with, and if not, why.

Nothing here raises when the extension is missing; asking for it by name is the backends' affair.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["available", "build_info", "missing_cuda", "missing_unchanged", "reason", "unchanged"]

LIBRARY = Path(__file__).with_name("_operators.so")

_HOW_TO_GET_IT = (
    "install a C++17 compiler and reinstall soap_fast with the environment variable "
    "SOAP_FAST_EXTENSION=ON, which says what the build lacks"
)


@functools.cache
def reason() -> str | None:
    """Loads the operators once; None if they are there, else why not and how to get them."""
    if not LIBRARY.exists():
        if (hidden := _hidden_install()) is not None:
            return (
                f"{LIBRARY.parent} is imported in place of the installed {hidden}, and has no "
                f"extension: run Python outside of {LIBRARY.parent.parent}, or install with "
                "--editable"
            )
        return f"soap_fast was installed without its extension; {_HOW_TO_GET_IT}"
    try:
        torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return (
            f"the extension does not load on torch {torch.__version__}: {error}; {_HOW_TO_GET_IT}"
        )
    return None


def _hidden_install() -> Path | None:
    """The installed package where a clone's folder was imported in its place."""
    for found in importlib.metadata.distributions(name="soap_fast"):
        folder = Path(str(found.locate_file("soap_fast")))
        if folder.is_dir() and folder.resolve() != LIBRARY.parent.resolve():
            return folder
    return None


def available() -> bool:
    """Whether `torch.ops.soap_fast` has its operators."""
    return reason() is None


def missing_cuda() -> str | None:
    """Why the extension computes nothing on CUDA and how to change that; None if it does."""
    if reason() is not None:
        return reason()
    info = build_info() or {}
    if info.get("cuda"):
        return None
    because = info.get("cuda_missing_because") or "nothing is known about its build"
    return (
        f"the extension was built without CUDA ({because}); install the CUDA toolkit and "
        "reinstall with SOAP_FAST_CUDA=ON"
    )


def unchanged() -> Any | None:
    """What compares Python's tensors in C++; None under another torch than it was built with.

    Unlike the operators it knows torch's own classes, which are laid out otherwise in every build.
    """
    return _load_unchanged()[0]


def missing_unchanged() -> str | None:
    """Why `unchanged` is None and how to change that; None if it is there."""
    return _load_unchanged()[1]


@functools.cache
def _load_unchanged() -> tuple[Any | None, str | None]:
    if reason() is not None:
        return None, reason()
    how = "reinstall soap_fast with the torch that it runs with"
    if (build_info() or {}).get("torch_commit") != torch.version.git_version:
        return None, f"the extension was built with another torch than {torch.__version__}; {how}"
    try:
        return importlib.import_module("soap_fast._unchanged"), None
    except ImportError as error:
        return None, f"soap_fast._unchanged does not load: {error}; {how}"


@functools.cache
def _build_module() -> Any | None:
    try:
        return importlib.import_module("soap_fast._build_info")
    except ImportError:
        return None


def build_info() -> dict[str, Any] | None:
    """What was built and with what, as plain values; None if no extension was built.

    `cuda` tells whether CUDA kernels were compiled in, `cuda_missing_because` why not.
    """
    module = _build_module()
    return None if module is None else dict(module.build_info())
