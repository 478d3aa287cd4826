"""A CUDA build of torch without a driver, as PyPI's default torch is on a machine without a GPU.

Tests run on whatever torch is at hand: in a process of its own torch claims to be such a build, and
all of `torch.cuda` that needs a driver raises, as it does there. `.ci/check_torches.sh` runs the
step on real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from streams import BACKENDS

from soap_fast.backends import survey
from soap_fast.backends.triton.backend import interpreted

HERE = Path(__file__).parent

# What works without a driver, on torch 2.11 and 2.14: questions, and what is postponed until CUDA
# is used. Modules are left as they are, their functions are not.
AS_SUCH_A_BUILD = """
import inspect, torch
WORKS = {
    "is_available", "is_initialized", "device_count", "manual_seed", "manual_seed_all",
    "memory_allocated", "max_memory_allocated", "is_bf16_supported", "get_arch_list",
}
def needing_a_driver(name):
    def raises(*args, **kwargs):
        raise torch.AcceleratorError(f"{name}: CUDA driver version is insufficient")
    return raises
torch.version.cuda = "13.0"
for name, value in list(vars(torch.cuda).items()):
    if name.startswith("_") or name in WORKS or inspect.ismodule(value):
        continue
    if inspect.isroutine(value) or name in ("Stream", "CUDAGraph", "device"):
        setattr(torch.cuda, name, needing_a_driver(name))
torch.cuda.is_available = torch.cuda.is_initialized = lambda: False
torch.cuda.device_count = lambda: 0
"""

STEPS = """
import itertools, sys, soap_fast
from interpreter import hasten
hasten()
for backend, schedule in itertools.product(sys.argv[1:], ("periodic", "staggered")):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 3, 3, 3), (5,), ())]
    options = {"precondition_frequency": 2, "refresh_schedule": schedule}
    optimizer = soap_fast.SOAP(params, backend=backend, **options)
    assert optimizer.backend == backend
    for call in range(6):
        for param in params:
            param.grad = torch.randn(param.shape)
        optimizer.step()
    assert all(bool(param.isfinite().all()) and bool((param != 1).all()) for param in params)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    optimizer.stats()
    soap_fast.precondition(optimizer, [param.grad for param in params])
    print(soap_fast.explain(optimizer))
    print(f"{backend} has stepped")
"""


def run(code: str, *arguments: str, interpreting: bool = False) -> str:
    inherited = {k: v for k, v in os.environ.items() if interpreting or k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", AS_SUCH_A_BUILD + code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stepped():
    """What is said where every backend that can run here has stepped, one after the other."""
    usable = [status.name for status in survey() if status.usable]
    return run(STEPS, *usable, interpreting=interpreted())


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_steps(backend, stepped):
    assert f"{backend} has stepped" in stepped


def test_it_describes_itself():
    said = run("from soap_fast.__main__ import main\nassert main([]) == 0")
    assert "torch sees no GPU" in said


def test_commands_that_measure_run(inventory_file):
    file = inventory_file({"model": "small", "params": [{"name": "weight", "shape": [6, 4]}]})
    short = "--periods 1 --precondition-frequency 2"
    commands = [
        f"step --backend eager {short} --shapes {file}",
        f"kernels --of operators --backend native --steps 1 --shapes {file}",
        f"refresh --repeats 2 --shapes {file}",
        f"launches --shapes {file}",
        "roof --repeats 2 --size 32 --copy-mib 1",
        f"train --backend eager {short} --batch 1 --crop 64 --width 4",
    ]
    # Peaks are taken by processes of their own, whose torch claims nothing.
    run(f"""
from bench import step, train
from bench.__main__ import main
step.peak_bytes = train.peak_bytes = lambda *_: None
for command in {commands}:
    assert main(command.split()) == 0, command
""")
