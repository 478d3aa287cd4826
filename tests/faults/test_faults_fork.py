"""A process that is forked after steps goes on by itself; it does not wait for threads it has not.

Each case is a process of its own, which forks: torch's pool in the one that runs the tests is none
of its business.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tolerances
import torch
from streams import ON_CPU

from soap_fast import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

# 64 x 64: torch's pool takes part in products, solvers and copies of that size.
PROGRAM = """
import json, os, signal, sys, warnings
import torch
from interpreter import hasten
from soap_fast import SOAP, forks

hasten()
backend, before, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if before:
    torch.set_num_threads(2)
warnings.filterwarnings("ignore", category=DeprecationWarning)


def built():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size, size)) for _ in range(4)]
    return params, SOAP(params, backend=backend, precondition_frequency=2)


def step(params, optimizer, calls):
    for call in calls:
        generator = torch.Generator().manual_seed(call)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def whole(params, optimizer):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        step(params, optimizer, range(before, before + 3))
        others, other = built()
        step(others, other, range(3))
        other.load_state_dict(optimizer.state_dict())
    texts = [str(w.message) for w in told if "forked" in str(w.message)]
    return {
        "calls": [optimizer.state[p]["calls"] for p in params],
        "sums": [float(p.detach().double().square().sum()) for p in params],
        "warnings": texts,
        "threads": torch.get_num_threads(),
        "lost": forks.lost_threads(),
    }


params, optimizer = built()
step(params, optimizer, range(before))
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(100)  # which ends one that hangs
    os.write(writing, json.dumps(whole(params, optimizer)).encode())
    os._exit(0)
os.close(writing)
with os.fdopen(reading) as pipe:
    text = pipe.read()
status = os.waitpid(child, 0)[1]
own = whole(params, optimizer)
print(json.dumps({"child": json.loads(text or "{}"), "status": status, "own": own}))
"""


def run(backend: str, before: int, size: int) -> dict:
    command = [sys.executable, "-c", PROGRAM, backend, str(before), str(size)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("backend", ON_CPU)
def test_steps_go_on_in_a_child(backend):
    """A plain step and refreshes, first bases, saving and loading; and in the parent."""
    found = run(backend, 3, 8 if backend == "triton" else 64)
    assert found["status"] == 0, "the child hung"
    child, own = found["child"], found["own"]
    assert child["calls"] == own["calls"] == [6] * 4
    assert child["sums"] == pytest.approx(
        own["sums"], rel=tolerances.THREADS
    )  # sums of one thread and of two
    assert child["threads"] == own["threads"] == 2  # what was set stays
    assert len(child["warnings"]) == 1
    assert "'spawn'" in child["warnings"][0]
    assert own["warnings"] == []


def test_what_has_lost_nothing_keeps_its_threads():
    before = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forks.on_own_threads():
            assert torch.get_num_threads() == before
    assert not forks.lost_threads()


def test_one_that_is_forked_before_the_first_step_has_all_of_its_threads():
    found = run("eager", 0, 8)
    assert found["status"] == 0
    assert not found["child"]["lost"]
    assert found["child"]["warnings"] == []
    assert found["child"]["sums"] == found["own"]["sums"]
