"""bench/measure.sh, which takes all kept results of a CPU, and the pages made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS
from bench.__main__ import main as bench
from bench.lic.models import MODELS
from bench.report import cost, page, phases, roofline

ROOT = Path(__file__).parent.parent

# In the place of Python: keeps its arguments, and writes what --json names unless told to fail.
STUB = f"""#!{sys.executable}
import json, os, sys
with open({{log!r}}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if os.environ.get("FAILING", "nothing") in sys.argv:
    sys.exit(1)
if "--json" in sys.argv:
    with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
        commit = os.environ.get("COMMIT", "c0ffee")
        file.write('{{{{\\n "model": "whole",\\n "commit": "%s"\\n}}}}' % commit)
"""
GIT = """#!/bin/sh
case "$1" in
  rev-parse) echo c0ffee ;;
  status) printf %s "$DIRTY" ;;
esac
"""


class Script:
    """bench/measure.sh with a stub for Python, into folders of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.stub = folder / "python"
        self.stub.write_text(STUB.format(log=str(self.log)))
        self.stub.chmod(0o755)
        (folder / "bin").mkdir()
        (folder / "bin" / "git").write_text(GIT)
        (folder / "bin" / "git").chmod(0o755)
        (folder / "results").mkdir()

    def run(self, **environment: str) -> tuple[int, list[list[str]]]:
        """Exit code, and the arguments of each call of Python."""
        self.log.write_text("")
        places = {
            "PYTHON": str(self.stub),
            "KEPT": str(self.folder / "kept"),
            "RESULTS": str(self.folder / "results"),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        done = subprocess.run(
            [ROOT / "bench" / "measure.sh"], env={**os.environ, **places, **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        self.error = done.stderr
        return done.returncode, [json.loads(line) for line in self.log.read_text().splitlines()]

    def results(self) -> set[str]:
        folder = self.folder / "results"
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def test_it_goes_on_where_it_failed_and_copies_what_is_whole(script):
    code, calls = script.run(FAILING="refresh")
    assert code == 1
    assert "failed: refresh/elic_cpu refresh/elic_cpu_one_thread;" in script.error
    assert script.results() == set()
    code, again = script.run()
    assert code == 0
    assert [call[2] for call in again] == ["refresh", "refresh", "report", "readme"]
    folders = {name.partition("/")[0] for name in script.results()}
    assert folders == {"roof", "kernels", "step", "refresh", "train", "scaling"}
    assert len(script.results()) == sum("--json" in call and call[1] == "bench" for call in calls)


def test_a_second_time_says_that_all_is_kept(script):
    assert script.run()[0] == 0
    kept = script.results()
    for path in (script.folder / "results").rglob("*.json"):
        path.unlink()
    code, calls = script.run(DIRTY=" M bench/results/roof/cpu.json")  # by the first time
    assert code == 0
    assert [call[2] for call in calls] == ["report", "readme"]
    assert script.results() == kept
    assert "all results of c0ffee are in" in script.error
    assert f"to take them anew: rm -r {script.folder / 'kept'}" in script.error


def test_numbers_belong_to_one_commit(script):
    code, calls = script.run(DIRTY=" M soap_fast/soap.py")
    assert (code, calls) == (2, [])
    assert "files differ from commit c0ffee" in script.error
    assert script.run(FAILING="refresh")[0] == 1
    assert script.run(COMMIT="decade")[0] == 1
    assert "results of several commits are in" in script.error
    assert script.results() == set()


def test_its_commands_can_be_parsed(script, monkeypatch, tmp_path):
    _, calls = script.run()
    reached = []
    for module in COMMANDS.values():
        monkeypatch.setattr(module, "run", lambda options: reached.append(options) or 0)
    ours = [call[2:] for call in calls if call[1] == "bench"]
    for arguments in ours:
        assert bench(arguments) == 0
    assert len(reached) == len(ours) > 10
    narrower = [call[2:] for call in calls if call[1] == "bench.lic"]
    lic = import_module("bench.lic.__main__").main
    assert lic([*narrower[0][:-1], str(tmp_path / "shapes.json")]) == 0
    assert {tuple(call[:1] + call[3:-1]) for call in narrower} == {
        ("shapes", "--factor", "0.25", "--json")
    }  # alike but for the model
    assert {call[2] for call in narrower} <= set(MODELS)


def test_narrower_models_are_called_so(script):
    script.run()
    found = sorted((script.folder / "kept" / "shapes").glob("*.json"))
    assert found
    for path in found:
        assert json.loads(path.read_text())["model"] == "whole at a quarter of its width"


class TestPages:
    def test_all_results_are_on_the_page_that_is_kept(self, monkeypatch, tmp_path):
        monkeypatch.chdir(ROOT)
        for module in (cost, phases, roofline):
            monkeypatch.setattr(module, "draw", lambda *_: None)
        page.write(page.sorted_out(page.found(["bench/results"])), tmp_path)
        kept = ROOT / "docs" / "measured"
        again = "run: python -m bench report bench/results --out docs/measured"
        assert (kept / page.PAGE).read_text() == (tmp_path / page.PAGE).read_text(), again

    def test_they_are_small_and_their_drawings_are_there(self):
        for path in (ROOT / "docs" / "measured").iterdir():
            assert path.stat().st_size < 200_000, path.name
