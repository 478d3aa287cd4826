"""The parts of `python -m bench device`: what they are, in which order, and that two calls do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.__main__ import main as bench
from bench.device import parts
from bench.device.parts import Part

ROOT = Path(__file__).parent.parent


def lasting(name, limit):
    return Part(name, ("python", "-c", ""), limit)


def test_two_calls_suffice_for_all_parts_of_a_gpu_machine():
    found = parts.parts()
    assert (parts.LIMIT_OF_ALL, parts.LIMIT_OF_A_CALL) == (780, 390)
    assert sum(part.limit for part in found) <= parts.LIMIT_OF_ALL
    begun = parts.calls(found)
    assert len(begun) == 2
    assert [part for call in begun for part in call] == found  # nothing out of its order
    for call in begun:
        assert sum(part.limit for part in call) + parts.BESIDE_PARTS <= parts.LIMIT_OF_A_CALL


def test_correctness_comes_first_and_takes_at_most_150_seconds():
    install, tests, roof, *_ = parts.parts()
    assert (install.name, tests.name, roof.name) == ("install", "tests", "roof")
    assert install.limit + tests.limit <= 150


def test_what_is_measured_and_in_which_order():
    models = ("elic", "tcm_128", "lalic", "dcae")
    assert [part.name for part in parts.parts()[2:]] == [
        "roof",
        *(f"step_{model}" for model in models),
        "kernels_elic",
        "kernels_dcae",
        *(f"train_{model}" for model in models),
        "refresh_elic",
        "peers_elic",
        "graphs_elic",
    ]
    for part in parts.parts():
        command = " ".join(part.command)
        assert str(ROOT) not in command
        assert sys.executable not in command
        if part.name.startswith("train_"):
            assert "--batch 8 --crop 256" in command


@pytest.mark.parametrize("installed", [True, False])
def test_tests_run_in_several_processes_where_xdist_is_installed(installed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    command = " ".join(next(part for part in parts.parts() if part.name == "tests").command)
    assert ("-n 7 " in command) == installed


def test_what_does_not_fit_waits_and_what_does_goes_on():
    long = parts.TIME_FOR_PARTS - 10
    chosen = [lasting("a", 20), lasting("b", long), lasting("c", 30), lasting("d", 10)]
    names = [[part.name for part in call] for call in parts.calls(chosen)]
    assert names == [["a", "c", "d"], ["b"]]
    assert parts.calls([]) == []


@pytest.mark.parametrize("part", [*parts.parts(), *parts.rehearsal()], ids=lambda part: part.name)
def test_commands_of_parts_can_be_parsed(part, monkeypatch, tmp_path):
    """Options that commands do not have would be found out on the machine with the GPU only."""
    if part.command[:3] != ("python", "-m", "bench"):
        assert part.name in ("install", "tests")
        return
    reached = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # any device can be used
    module = __import__(f"bench.commands.{part.command[3]}", fromlist=["run"])
    monkeypatch.setattr(module, "run", lambda options: reached.append(options) or 0)
    assert bench(list(part.command[3:])) == 0
    assert reached[0].json == "{out}"


def test_all_tests_of_gpus_are_among_the_parts():
    (part,) = (part for part in parts.parts() if part.name == "tests")
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name == Path(__file__).name or "mark.gpu" not in path.read_text():
            continue
        name = path.relative_to(ROOT).as_posix()
        if name not in part.command:
            found[name] = path.read_text().count("mark.gpu")
    cases = [word.partition("::")[0] for word in part.command if "::" in word]
    assert found == {name: cases.count(name) for name in cases}


TESTS_ALONE = """
import sys
for name in ("hypothesis", "matplotlib", "numpy", "pytorch_optimizer", "scipy", "tqdm"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_tests_of_gpus_need_no_more_than_torch_triton_and_pytest():
    (part,) = (part for part in parts.parts() if part.name == "tests")
    files = [word for word in part.command if word.startswith("tests/")]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TESTS_ALONE, *files],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert all(file in done.stdout for file in files)
