"""`python -m bench device`: parts in order, marked when done, cut off in time, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.__main__ import main as bench
from bench.commands import device
from bench.device import ledger, parts
from bench.device.parts import Part

ROOT = Path(__file__).parent.parent


def python(name, code, limit=20.0):
    return Part(name, ("python", "-c", code), limit)


def result(name, code="", limit=20.0):
    """A part that leaves a result, unless the code raises."""
    text = f"import sys; {code or 'pass'}\nopen(sys.argv[1], 'w').write('[1]'); print('a table')"
    return Part(name, ("python", "-c", text, "{out}"), limit)


@pytest.fixture
def take(monkeypatch, tmp_path):
    """Take made-up parts into a folder; the exit code and what parts.json has."""
    folder = tmp_path / "results"

    def run(*chosen, options=()):
        monkeypatch.setattr(device, "rehearsal", lambda: list(chosen))
        code = bench(["device", "--rehearse", "--out", str(folder), *options])
        return code, json.loads((folder / "parts.json").read_text())["parts"]

    run.folder = folder
    return run


def test_one_after_the_other_and_a_report(take, capsys):
    code, found = take(result("first"), python("second", "print('no result')"))
    assert code == 0
    assert [entry["status"] for entry in found.values()] == ["done", "done"]
    assert (take.folder / "first.json").read_text() == "[1]"
    report = (take.folder / "report.md").read_text()
    assert "## first" in report
    assert "a table" in report
    assert "no result" in report
    assert str(ROOT) not in report


def test_results_are_told_as_by_bench_report(take):
    rows = [{"name": "adamw", "shapes": "tiny", "device": "cpu", "first_ms": 4.0, "plain_ms": 1.25,
             "refresh_ms": None, "mean_ms": 1.25}]  # fmt: skip
    content = {"machine": {"processor": "made up"}, "results": rows}
    code = f"open(sys.argv[1], 'w').write({json.dumps(content)!r}); print('as printed')"
    step = Part("step_tiny", ("python", "-c", f"import sys; {code}", "{out}"), 20)
    assert take(step, python("tests", "print('7 passed')"))[0] == 0
    report = (take.folder / "report.md").read_text()
    assert "## Steps by phase" in report
    assert "| adamw | tiny | 4 | 1.25 | - | 1.25 |" in report
    assert "`step_tiny.json`: made up" in report
    assert "as printed" not in report
    assert report.index("step_tiny") < report.index("## Steps") < report.index("7 passed")
    assert (take.folder / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_is_recorded_and_the_next_goes_on(take):
    broken = result("broken", "print('half a table'); raise SystemExit('no such kernel')")
    without, absent = python("without", "raise SystemExit(3)"), Part("absent", ("/no/such",), 5)
    code, found = take(broken, without, absent, result("last"))
    assert code == 1
    assert found["broken"]["message"] == "exit code 1: no such kernel"
    assert found["without"]["message"] == "exit code 3: "
    assert "No such file" in found["absent"]["message"]
    assert found["last"]["status"] == "done"
    assert not (take.folder / "broken.json").exists()
    assert "no such kernel" in (take.folder / "report.md").read_text()


def test_a_command_that_leaves_no_result_has_failed(take):
    code, found = take(Part("empty", ("python", "-c", "pass", "{out}"), 20))
    assert (code, found["empty"]["status"]) == (1, "failed")


def test_what_is_cut_off_takes_its_children_along(take, tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    start = time.monotonic()
    _, found = take(python("slow", code, limit=3), result("next"))
    assert time.monotonic() - start < 15
    assert found["slow"]["status"] == "cut off"
    assert found["slow"]["message"] == "took longer than 3 s"
    assert found["next"]["status"] == "done"
    assert gone(int(child.read_text()))


def test_children_of_a_part_that_has_ended_end_as_well(take, tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(child)!r}, 'w').write(str(child.pid))"
    )
    assert take(python("leaves one", code))[0] == 0
    assert gone(int(child.read_text()))


def test_parts_of_another_commit_are_named_and_taken_anew(take, monkeypatch, capsys):
    monkeypatch.setattr("bench.output.envelope.commit", lambda: "c0ffee")
    assert take(result("one"))[0] == 0
    monkeypatch.setattr("bench.output.envelope.commit", lambda: "c0ffee+changes")
    capsys.readouterr()
    assert take(result("one"), result("two"))[0] == 0
    assert "1/1 two" in capsys.readouterr().err
    monkeypatch.setattr("bench.output.envelope.commit", lambda: "decade")
    code, found = take(result("one"), result("two"))
    said = capsys.readouterr().err
    assert "of another commit, taken anew: one, two" in said
    assert "2/2 two" in said
    assert (code, found["one"]["commit"]) == (0, "decade")


def test_a_later_call_goes_on_and_tries_again_what_failed(take, tmp_path):
    log = tmp_path / "log"
    counting = f"open({str(log)!r}, 'a').write('x')"
    once = result("once", counting)
    fails = result("fails", f"import os; os.path.exists({str(log)!r} + '2') or sys.exit(1)")
    assert take(once, fails)[0] == 1
    (tmp_path / "log2").touch()
    code, found = take(once, fails, result("new"))
    assert code == 0
    assert list(found) == ["once", "fails", "new"]
    assert log.read_text() == "x"
    assert take(once, options=["--only", "once"])[0] == 0  # asked for by name: taken again
    assert log.read_text() == "xx"


def test_untried_parts_come_before_those_that_failed(take):
    failing = python("failing", "raise SystemExit(1)")
    take(failing)
    chosen = [failing, python("new", "")]
    left = ledger.Ledger(take.folder).left(chosen)
    assert [part.name for part in left] == ["new", "failing"]


def test_a_part_that_does_not_fit_into_what_is_left_is_not_begun(take, monkeypatch, capsys):
    monkeypatch.setattr(device, "TIME_FOR_PARTS", 21)
    quick = python("long", "import time; time.sleep(1.2)")
    code, found = take(quick, result("late"), result("short", limit=15))
    assert code == 1
    assert list(found) == ["long", "short"]
    assert "for the next call, the same command goes on: late" in capsys.readouterr().err
    code, found = take(quick, result("late"), result("short", limit=15))
    assert code == 0
    assert found["late"]["status"] == "done"


def test_what_parts_without_a_file_print_is_kept_as_json(take):
    _, found = take(
        python("install", "print('{\"ok\": true}')"), python("tests", "print('..\\n7 passed')")
    )
    assert found["install"]["result"] == {"ok": True}
    assert found["tests"]["result"] == "7 passed"


def test_the_report_has_the_last_of_what_was_printed(take):
    take(python("tests", "print(*(f'line {i}' for i in range(100)), sep='\\n')"))
    report = (take.folder / "report.md").read_text()
    assert "[40 lines more in tests.txt]\nline 40\n" in report
    assert "line 99" in report


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere init has orphans")
@pytest.mark.parametrize("sleeps", [0, 60])
def test_nothing_outlives_a_part_not_even_in_a_session_of_its_own(take, tmp_path, sleeps):
    child = tmp_path / "child"
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60'], start_new_session=True)"
        f"; open({str(child)!r}, 'w').write(str(child.pid)); time.sleep({sleeps})"
    )
    bystander = subprocess.Popen(["sleep", "60"])
    take(python("leaves one", code, limit=3))
    assert gone(int(child.read_text()))
    assert bystander.poll() is None  # it was there before
    bystander.kill()
    bystander.communicate()


SLOW = (
    "import os, subprocess, time; os.path.exists({!r}) or "
    "(print(os.getpid(), subprocess.Popen(['sleep', '60']).pid, flush=True), time.sleep(60))"
)
STARTED = """
import sys
from bench.commands import device
from bench.__main__ import main
from test_bench_device import python, result
device.rehearsal = lambda: [result("quick"), python("slow", {slow!r})]
sys.exit(main(["device", "--rehearse", "--out", {folder!r}]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends the part")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_goes_on(take, tmp_path, capsys, how):
    folder, flag = take.folder, tmp_path / "flag"
    slow = SLOW.format(str(flag))
    code = STARTED.format(slow=slow, folder=str(folder))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    printed, end = folder / "slow.txt", time.monotonic() + 60
    while not (printed.exists() and printed.read_text().strip()) and time.monotonic() < end:
        time.sleep(0.05)
    part, child = map(int, printed.read_text().split())
    process.send_signal(how)
    _, error = process.communicate(timeout=20)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert gone(part)
    assert gone(child)
    found = json.loads((folder / "parts.json").read_text())["parts"]
    assert list(found) == ["quick"]
    if how != signal.SIGKILL:
        assert "the same command goes on" in error
    flag.touch()
    capsys.readouterr()
    assert take(result("quick"), python("slow", slow))[0] == 0
    assert "1/1 slow" in capsys.readouterr().err


class TestRefusals:
    def refused(self, capsys, *options):
        assert bench(["device", *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def test_no_gpu(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "torch sees no NVIDIA GPU" in self.refused(capsys, "--out", str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_missing_packages(self, capsys, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "triton is not installed: pip install triton" in self.refused(capsys)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr("soap_fast.extension.available", lambda: False)
        monkeypatch.setattr("soap_fast.extension.reason", lambda: "no compiler; install one")
        assert "no compiler; install one" in self.refused(capsys)

    def test_an_unknown_part(self, capsys):
        assert "no part 'rof': take install" in self.refused(capsys, "--dry-run", "--only", "rof")

    def test_a_folder_of_another_machine(self, capsys, tmp_path):
        text = json.dumps({"machine": {"gpu": "another"}, "parts": {}})
        (tmp_path / "parts.json").write_text(text)
        error = self.refused(capsys, "--rehearse", "--out", str(tmp_path))
        assert "holds results of another machine" in error

    @pytest.mark.parametrize("text", ["{", "[]", '{"parts": 3}'])
    def test_a_damaged_folder(self, capsys, tmp_path, text):
        (tmp_path / "parts.json").write_text(text)
        assert "is damaged" in self.refused(capsys, "--rehearse", "--out", str(tmp_path))

    def test_a_folder_that_cannot_be_made(self, capsys):
        assert "name another folder" in self.refused(capsys, "--rehearse", "--out", __file__)

    def test_the_list_is_kept_as_json(self, capsys):
        assert bench(["device", "--dry-run", "--json", "-"]) == 0
        printed = capsys.readouterr()
        rows = json.loads(printed.out)["results"]
        assert [row["part"] for row in rows] == [*(part.name for part in parts.parts()), "all"]
        assert rows[0]["status"] == "not run"
        assert rows[-1]["limit_s"] == sum(row["limit_s"] for row in rows[:-1]) <= 780
        for call in (1, 2):
            assert 0 < sum(row["limit_s"] for row in rows if row.get("call") == call) <= 390
        assert "step_elic" in printed.err

    def test_a_dry_run_needs_no_gpu_and_writes_nothing(self, capsys, tmp_path):
        assert bench(["device", "--dry-run", "--out", str(tmp_path)]) == 0
        assert "step_elic" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())


BARE = """
import sys
for name in ("matplotlib", "numpy", "pytorch_optimizer", "scipy", "skimage", "tabulate", "tqdm"):
    sys.modules[name] = None
from bench.__main__ import main
sys.exit(main(["device", "--rehearse", "--out", sys.argv[1], "--only", "roof"]))
"""


def test_one_part_of_the_rehearsal_is_real_and_needs_no_more_than_torch(tmp_path):
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # the others are not done
    content = json.loads((tmp_path / "roof.json").read_text())
    assert {row["roof"] for row in content["results"]} >= {"copy", "gemm_float32"}
    assert "## Roofs" in (tmp_path / "report.md").read_text()


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds; a zombie of nobody's is gone as well."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
