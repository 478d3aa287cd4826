"""The versions of what a step is computed with."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path

import torch

__version__ = "0.1.0"


def versions() -> dict[str, str | None]:
    """Of soap_fast, Python, torch, torch's CUDA and Triton; None for what is not there."""
    return {
        "soap_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "triton": triton_version(),
    }


@functools.cache  # a kernel is compiled for it, and reading it takes a millisecond
def triton_version() -> str | None:
    """Of the Triton that would be imported; it is not."""
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "of another distribution"


@functools.cache
def digest() -> str:
    """Of soap_fast's own code: between two releases it changes where the version does not."""
    found = hashlib.sha256()
    package = Path(__file__).parent
    # In an editable install they lie elsewhere.
    kernels = importlib.util.find_spec("soap_fast.triton_kernels")
    folders = () if kernels is None else kernels.submodule_search_locations or ()
    for folder in (package, *map(Path, folders)):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):  # tuning too
            found.update(path.read_bytes())
    library = package / "_operators.so"
    if library.exists():
        facts = library.stat()
        found.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return found.hexdigest()
