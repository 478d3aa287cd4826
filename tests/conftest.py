"""What tests share: property tests with the same examples in every `make test`, small inventories.

`make soak` takes thousands of new examples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import hasten

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU for `python -m bench device` need not have it
    settings = None

# Triton reads it when kernels are imported: without a GPU they are interpreted in this process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    hasten()

examples = os.environ.get("SOAP_FAST_EXAMPLES")
if settings is not None:
    settings.register_profile("test", max_examples=150, deadline=None, derandomize=True)
    soak = {"max_examples": int(examples or 1), "deadline": None, "print_blob": True}
    settings.register_profile("soak", **soak)
    settings.load_profile("soak" if examples else "test")


def pytest_configure(config: pytest.Config) -> None:
    """`SOAP_FAST_PERTURB=1e-7`: gradients with other last bits, see perturbed.py."""
    if size := os.environ.get("SOAP_FAST_PERTURB"):
        from perturbed import Perturbation

        seed = int(os.environ.get("SOAP_FAST_PERTURB_SEED", "0"))
        config.pluginmanager.register(Perturbation(float(size), seed))


THREADS = torch.get_num_threads()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """A test that leaves more threads behind is an error: all after it would wait for them."""
    yield
    assert torch.get_num_threads() <= THREADS, f"{torch.get_num_threads()} threads are left"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small work on several threads of a busy machine waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def inventory_file(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes an inventory, {model, params}, and returns its path, for `--shapes`."""

    def written(content: dict[str, Any]) -> str:
        path = tmp_path / f"{content['model']}.json"
        path.write_text(json.dumps(content))
        return str(path)

    return written


@pytest.fixture
def bench_rows(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a command of `python -m bench` and returns the rows that it writes."""
    from bench.__main__ import main  # imports kernels, which ask for TRITON_INTERPRET

    def rows(*arguments: str) -> list[dict[str, Any]]:
        target = tmp_path / "result.json"
        assert main([*arguments, "--json", str(target)]) == 0
        return list(json.loads(target.read_text())["results"])

    return rows
