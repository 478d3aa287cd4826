"""What `python -m bench device` runs: parts, the most important first, each with its limit."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.command import ROOT

PYTHON = "python"  # the one that runs us, without its path: commands go into reports
# Those that run on a GPU where there is one; the others interpret kernels or need none.
GPU_TESTS = ("tests/test_gpu*.py", "tests/test_kernels.py")
GPU_CASES = tuple(
    f"tests/test_bench_suite.py::TestDeviceTimer::{name}"
    for name in ("test_it_times_the_device_and_graphs_repeat", "test_every_case_of_a_gpu_runs")
)  # of files whose other tests need more packages than such a machine must have
# What matters most is known before a part that takes too long is cut off.
FIRST = ("tests/test_gpu_traces", "tests/test_kernels", "tests/test_gpu_workspace")
PEERS = "pytorch_optimizer,heavyball,adamw,adamw_foreach"
PROCESSES = 7  # of tests, which wait for the host more than for the GPU
# Seconds. A call is one `python -m bench device`; two of them are to suffice.
LIMIT_OF_ALL = 780
LIMIT_OF_A_CALL = 390
BESIDE_PARTS = 20  # of a call: torch is loaded before the first part, a report drawn after the last
TIME_FOR_PARTS = LIMIT_OF_A_CALL - BESIDE_PARTS


class Part(NamedTuple):
    """A command line of its own.

    Attributes:
        name: of its result, NAME.json.
        command: `{out}` stands for the path of the result, `{toy}` for that of a small inventory.
        limit: seconds.
    """

    name: str
    command: tuple[str, ...]
    limit: float


Found = Iterator[tuple[str, tuple[str, ...], float]]


def parts() -> list[Part]:
    """All of a GPU machine; the limits add up to at most LIMIT_OF_ALL."""
    return [
        Part(
            "install", (PYTHON, "-m", "soap_fast", "--json"), 45
        ),  # checks two backends, compiling included
        Part("tests", _tests(GPU_TESTS, GPU_CASES, _in_parallel()), 105),
        *(Part(name, _bench(*command), limit) for name, command, limit in _measurements()),
    ]


def calls(left: Sequence[Part]) -> list[list[Part]]:
    """What each of the calls begins if every part takes all of its limit.

    A part that does not fit into what is left of a call waits for the next one; a later one that
    fits does not wait for it.
    """
    found = []
    while left:
        room, now, later = float(TIME_FOR_PARTS), [], []
        for part in left:
            if part.limit <= room or not (now or later):
                now.append(part)
                room -= part.limit
            else:
                later.append(part)
        found.append(now)
        left = later
    return found


ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # several on small work wait for each other


def rehearsal() -> list[Part]:
    """The same kinds of parts on the CPU, on the inventory `{toy}`; for ONE_THREAD."""
    return [
        Part("install", (PYTHON, "-m", "soap_fast", "--json"), 60),
        Part("tests", _tests(("tests/test_architecture.py",)), 60),
        *(Part(name, _bench(*command), limit) for name, command, limit in _small_measurements()),
    ]


def _small_measurements() -> Found:
    on = ("--device", "cpu")
    few = ("--shapes", "{toy}", *on)
    often = ("--periods", "1", "--precondition-frequency", "2")
    yield "roof", ("roof", *on, "--size", "64", "--copy-mib", "1"), 60
    yield "step_toy", ("step", *few, *often), 60
    yield "kernels_toy", ("kernels", *few, "--steps", "1"), 60
    yield "train_demo", ("train", *on, *often, "--width", "4", "--batch", "1"), 60
    yield "refresh_toy", ("refresh", *few, "--op", "eager", "--repeats", "1"), 60
    yield "peers_toy", ("step", *few, *often, "--peers", "adamw"), 60


def _measurements() -> Found:
    """The most important first, for a call may be the last one."""
    on = ("--device", "cuda")
    triton = ("--backend", "triton")
    yield "roof", ("roof", *on), 20
    for model, limit in (("elic", 40), ("tcm_128", 40), ("lalic", 45), ("dcae", 50)):
        yield f"step_{model}", ("step", "--shapes", model, *on, *triton, "--periods", "3"), limit
    yield "kernels_elic", ("kernels", "--shapes", "elic", *on), 25
    yield "kernels_dcae", ("kernels", "--shapes", "dcae", *on), 40
    for model, limit in (("elic", 45), ("tcm_128", 55), ("lalic", 60), ("dcae", 60)):
        yield f"train_{model}", ("train", "--model", model, *on, *triton, *AS_PUBLISHED), limit
    yield "refresh_elic", ("refresh", "--shapes", "elic", *on), 35
    # Peers get less than the part: what they do must not cost our own numbers.
    limits = ("--periods", "2", "--time-limit", "15", "--budget", "30")
    beside = ("step", "--shapes", "elic", *on, *triton, "--peers", PEERS, *limits)
    yield "peers_elic", beside, 50
    yield "graphs_elic", ("step", "--shapes", "elic", *on, "--graphed", "--periods", "3"), 25


# As the models' authors train, in float32; a step's mean is over one refresh period.
AS_PUBLISHED = ("--batch", "8", "--crop", "256", "--periods", "1")


def _bench(*command: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "bench", *command, "--json", "{out}")


def _tests(
    patterns: tuple[str, ...], cases: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Each test is printed as it ends: one that is cut off says how far it came."""
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    files = sorted(path.relative_to(ROOT).as_posix() for path in found)
    files.sort(key=lambda name: not name.startswith(FIRST))
    return (PYTHON, "-m", "pytest", "-v", "--tb=short", "--maxfail=20", *more, *files, *cases)


def _in_parallel() -> tuple[str, ...]:
    """Options of pytest-xdist; none where it is not installed."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(min(PROCESSES, os.cpu_count() or 1)))
