"""`python -m bench device`: which parts, in which order, cut off in time, gone on with."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import torch

from bench import device
from bench.__main__ import COMMANDS
from bench.__main__ import main as bench
from bench.device import Part

ROOT = Path(__file__).parent.parent.parent
ROWS = [{"roof": "copy", "value": 1.0, "unit": "GB/s"}]
CONTENT = {"command": "roof", "machine": {}, "results": ROWS}


def python(name, code, *more, limit=20.0):
    return Part(name, ("python", "-c", code, *more), limit)


def result(name, code="pass", **more):
    """A part that leaves a result, unless the code raises."""
    write = f"import json, sys; {code}; open(sys.argv[1], 'w').write(json.dumps({CONTENT!r}))"
    return python(name, write, "{out}", **more)


@pytest.fixture
def take(monkeypatch, tmp_path):
    """Take made-up parts into a folder; the exit code and the states of all."""
    monkeypatch.setattr(device, "_check_machine", lambda: None)
    monkeypatch.setattr("bench.envelope.commit", lambda: "c0ffee")
    folder = tmp_path / "results"

    def run(*chosen, options=()):
        monkeypatch.setattr(device, "parts", lambda: list(chosen))
        code = bench(["device", "--out", str(folder), *options])
        return code, {row["part"]: row for row in device._states(chosen, folder)}

    run.folder = folder
    return run


def test_parts_leave_results_and_a_report(take):
    broken = result("broken", "print('half a table'); raise SystemExit('no such kernel')")
    printed = python("tests", "print(*(f'line {i}' for i in range(100)), sep='\\n')")
    code, found = take(result("first"), broken, printed, Part("empty", ("true", "{out}"), 5))
    assert code == 1
    states = {name: row.get("status") for name, row in found.items()}
    assert states == {"first": "done", "broken": "failed", "tests": "done", "empty": "failed",
                      "all": None}  # fmt: skip
    assert found["broken"]["message"] == "exit code 1: no such kernel"
    assert not (take.folder / "broken.json").exists()
    text = (take.folder / "report.md").read_text()
    end = "The end of tests.txt:\n\nline 40\n"
    assert all(part in text for part in ("## Roofs", "`first.json`:\n", "half a table", end))
    assert str(ROOT) not in text


def test_a_later_call_goes_on_and_what_failed_comes_last(take, tmp_path, capsys):
    log = tmp_path / "log"
    once = result("once", f"open({str(log)!r}, 'a').write('x')")
    fails = result("fails", f"import os; os.path.exists({str(log)!r} + '2') or sys.exit(1)")
    assert take(once, fails)[0] == 1
    (tmp_path / "log2").touch()
    capsys.readouterr()
    assert take(once, fails, result("new"))[0] == 0
    said = capsys.readouterr().err
    assert said.index("1/2 new") < said.index("2/2 fails")
    assert log.read_text() == "x"
    assert take(once, options=["--only", "once"])[0] == 0  # asked for by name: taken again
    assert log.read_text() == "xx"


def test_a_folder_belongs_to_a_commit(take, monkeypatch, capsys):
    for commit, code in (("c0ffee", 0), ("c0ffee+changes", 0), ("decade", 2)):
        monkeypatch.setattr("bench.envelope.commit", lambda commit=commit: commit)
        assert take(result("one"))[0] == code
    assert "is of commit c0ffee: name another folder" in capsys.readouterr().err


def test_what_is_cut_off_takes_its_children_along(take, tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    child = f"touch {begun}; sleep 4; touch {ended}"
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', {child!r}]); time.sleep(60)"
    start = time.monotonic()
    _, found = take(python("slow", code, limit=2), result("next"))
    assert time.monotonic() - start < 15
    assert found["slow"]["message"] == "took longer than 2 s"
    assert found["next"]["status"] == "done"
    assert begun.exists()
    time.sleep(max(0, start + 7 - time.monotonic()))
    assert not ended.exists(), "the child goes on"


def test_a_part_that_does_not_fit_into_what_is_left_is_not_begun(take, monkeypatch, capsys):
    monkeypatch.setattr(device, "TIME_FOR_PARTS", 21)
    quick = python("long", "import time; time.sleep(1.2)")
    code, found = take(quick, result("late"), result("short", limit=15))
    assert (code, found["late"]["status"], found["short"]["status"]) == (1, "not run", "done")
    assert "the same command goes on: late" in capsys.readouterr().err


def test_two_calls_suffice_and_correctness_comes_first():
    found = device.parts()
    limit = min(device.LIMIT_OF_ALL, 2 * device.TIME_FOR_PARTS)
    assert sum(part.limit for part in found) <= limit <= 780
    assert [part.name for part in found[:3]] == ["install", "tests", "roof"]
    assert str(ROOT) not in str(found)  # commands go into the report
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "pytest.mark.gpu" in path.read_text() and path != Path(__file__):
            assert path.relative_to(ROOT).as_posix() in found[1].command


def test_commands_can_be_parsed(monkeypatch, tmp_path):
    """Of parts and of `make measure`: what is no option would be found out while they run."""
    make = ["make", "-n", "-f", "bench/Makefile", f"KEPT={tmp_path}", "PYTHON=python"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    of_make = re.findall(r"^python -m bench (.*)$", done.stdout, flags=re.MULTILINE)
    of_parts = [part.command[3:] for part in device.parts()[2:]]
    assert len(of_make) == 16 + 2
    reached = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # any device can be used
    monkeypatch.chdir(tmp_path)
    for arguments in (*of_parts, *map(shlex.split, of_make)):
        module = COMMANDS[arguments[0]]
        monkeypatch.setattr(module, "run", lambda options: reached.append(options) or 0)
        assert bench(list(arguments)) == 0, arguments
    assert all(options.json == "{out}" for options in reached[: len(of_parts)])


def test_a_dry_run_needs_no_gpu_and_writes_nothing(bench_rows, tmp_path):
    rows = bench_rows("device", "--dry-run", "--out", str(tmp_path / "results"))
    assert [row["part"] for row in rows] == [*(p.name for p in device.parts()), "all"]
    assert rows[-1]["limit_s"] == sum(row["limit_s"] for row in rows[:-1])
    assert not (tmp_path / "results").exists()


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench(["device"]) == 2
    assert "torch sees no NVIDIA GPU" in capsys.readouterr().err
