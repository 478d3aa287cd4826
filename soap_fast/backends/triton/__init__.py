"""The step in a handful of launches: host code of the kernels in `triton_kernels/`."""

import importlib.util
import sys
from pathlib import Path


def _import_kernels_of_a_clone() -> None:
    """In a clone the kernels lie beside the package; an install puts them into it.

    An editable install could find them as well, but perhaps those of another clone.
    """
    package = Path(__file__).parents[2]
    folder, name = package.parent / "triton_kernels", f"{package.name}.triton_kernels"
    first = folder / "__init__.py"
    if name in sys.modules or (package / "triton_kernels").exists() or not first.exists():
        return
    spec = importlib.util.spec_from_file_location(
        name, first, submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    kernels = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    setattr(sys.modules[package.name], "triton_kernels", kernels)  # noqa: B010, mypy's protest


_import_kernels_of_a_clone()
