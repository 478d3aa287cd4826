"""What `python -m bench device` runs: parts, the most important first, each with its limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.command import ROOT

PYTHON = "python"  # the one that runs us, without its path: commands go into reports
# Those that run on a GPU where there is one; the others interpret kernels or need none.
GPU_TESTS = ("tests/test_gpu*.py", "tests/test_kernels.py")
GPU_CASES = tuple(
    f"tests/test_bench_suite.py::TestDeviceTimer::{name}"
    for name in ("test_it_times_the_device_and_graphs_repeat", "test_every_case_of_a_gpu_runs")
)  # of files whose other tests need more packages than such a machine must have
PEERS = "pytorch_optimizer,heavyball,adamw,adamw_foreach"
FEW_PEERS = "pytorch_optimizer,adamw"  # of the larger models: the others are measured on elic
LIMIT_OF_A_PART = 8 * 60
LIMIT_OF_ALL = 25 * 60


class Part(NamedTuple):
    """A command line of its own.

    Attributes:
        name: of its result, NAME.json, and of what it printed, NAME.log.
        command: `{out}` stands for the path of the result, `{toy}` for that of a small inventory; a
            command without the former leaves only what it printed.
        limit: seconds.
    """

    name: str
    command: tuple[str, ...]
    limit: float


Found = Iterator[tuple[str, tuple[str, ...], float]]


def parts() -> list[Part]:
    """All of a GPU machine; the limits add up to less than LIMIT_OF_ALL."""
    return [
        Part("install", (PYTHON, "-m", "soap_fast", "--json"), 60),
        Part("tests", _tests(GPU_TESTS, GPU_CASES), 280),
        *(Part(name, _bench(*command), limit) for name, command, limit in _measurements()),
    ]


def rehearsal() -> list[Part]:
    """The same kinds of parts on the CPU, on the inventory `{toy}`."""
    return [
        Part("install", (PYTHON, "-m", "soap_fast", "--json"), 60),
        Part("tests", _tests(("tests/test_readme.py",)), 60),
        *(Part(name, _bench(*command), limit) for name, command, limit in _small_measurements()),
    ]


def _small_measurements() -> Found:
    on = ("--device", "cpu")
    few = ("--shapes", "{toy}", *on)
    yield "roof", ("roof", *on, "--size", "64", "--copy-mib", "1"), 60
    yield "step_toy", ("step", *few, "--peers", "adamw,oracle"), 60
    yield "kernels_toy", ("kernels", *few, "--steps", "1"), 60
    yield "refresh_toy", ("refresh", *few, "--op", "eager", "--repeats", "1"), 60
    yield "train_demo", ("train", *on, "--width", "4", "--batch", "1", "--periods", "1"), 60


def _measurements() -> Found:
    on = ("--device", "cuda")
    triton = ("--backend", "triton")
    yield "roof", ("roof", *on), 90
    yield "step_elic", _step("elic", on, triton, 60), 120
    yield "kernels_elic", ("kernels", "--shapes", "elic", *on), 90
    yield "refresh_elic", ("refresh", "--shapes", "elic", *on), 60
    yield "train_elic", _train("elic", on, triton), 80
    yield "train_tcm_64", _train("tcm_64", on, triton), 80
    yield "train_lalic", _train("lalic", on, triton), 85
    yield "train_dcae", _train("dcae", on, triton), 85
    yield "step_lalic", _step("lalic", on, triton, 60, FEW_PEERS), 110
    yield "graphs_elic", ("step", "--shapes", "elic", *on, "--graphed", "--periods", "5"), 60
    yield "step_tcm_128", _step("tcm_128", on, triton, 45, FEW_PEERS), 90
    yield "step_dcae", _step("dcae", on, triton, 60, FEW_PEERS), 110
    # Compiling takes as long as it is given; it comes last, and its own limit is shorter.
    compiled = ("--peers", "heavyball_compiled", "--periods", "3")
    limits = ("--time-limit", "40", "--budget", "50")
    yield "step_elic_compiled", ("step", "--shapes", "elic", *on, *triton, *compiled, *limits), 90


def _step(
    model: str, on: tuple[str, ...], backend: tuple[str, ...], budget: int, peers: str = PEERS
) -> tuple[str, ...]:
    """Peers get so many seconds, less than the part: what they do must not cost our own numbers."""
    limits = ("--periods", "3", "--time-limit", "30", "--budget", str(budget))
    return ("step", "--shapes", model, *on, *backend, "--peers", peers, *limits)


def _train(model: str, on: tuple[str, ...], backend: tuple[str, ...]) -> tuple[str, ...]:
    """As the models' authors train; a whole step is to take at most 1.05 times Adam's."""
    as_published = ("--batch", "8", "--crop", "256", "--periods", "2")
    return ("train", "--model", model, *on, *backend, *as_published)


def _bench(*command: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "bench", *command, "--json", "{out}")


def _tests(patterns: tuple[str, ...], cases: tuple[str, ...] = ()) -> tuple[str, ...]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    files = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return (PYTHON, "-m", "pytest", "-q", "--maxfail=20", *files, *cases)
