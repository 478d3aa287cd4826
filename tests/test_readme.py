"""README says what the result files say, its code runs, and all pages can be read and followed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import readme as front
from bench.__main__ import main as bench
from bench.files import BadInput

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
WIDTH = 110  # of Markdown
KEPT = ("docs/measured", *(f"bench/results/{name}" for name in ("comparison", "demo", "study")))
GENERATED = [page for folder in KEPT for page in (ROOT / folder).glob("*.md")]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def test_its_table_is_that_of_the_result_files():
    assert bench(["readme", "--check"]) == 0, "run: python -m bench readme"


def test_it_fits_a_first_look():
    lines = README.read_text().splitlines()
    assert len(lines) <= 110
    assert any(line.startswith("![") for line in lines[:10]), "no plot in the first screen"


@every_page
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", prose(page)):
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
            assert heading[1:] in {
                re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles
            }


@every_page
def test_the_files_that_pages_name_exist(page):
    for name in re.findall(
        r"`((?:soap_fast|csrc|bench|tests|docs|triton_kernels)/[\w./]+\.\w+)`", page.read_text()
    ):
        assert "NAME" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [*PAGES, *GENERATED], ids=lambda page: "/".join(page.parts[-2:]))
def test_lines_can_be_read(page):
    """Tables and blocks of code may be wider, and a link that has a line of its own."""
    long = [
        line
        for line in prose(page).splitlines()
        if len(line) > WIDTH and not re.match(r"\s*(\||[-*]? ?!?\[[^\]]*\]\(\S+\)$)", line)
    ]
    assert long == []


def test_its_loop_runs_as_it_stands(tmp_path):
    """In a process of its own, as somebody would run it who has copied it into a file."""
    script = tmp_path / "first.py"
    script.write_text(blocks()[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "stepped by" in done.stdout
    assert "soap_fast.update" in done.stdout


@pytest.mark.usefixtures("one_thread")
def test_a_model_of_ones_own_is_timed_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(blocks()[1])
    (command,) = re.findall(r"-m bench (train --model mine:.+)", README.read_text())
    assert bench([*command.split(), "--periods", "1", "--device", "cpu"]) == 0
    rows = json.loads(Path("mine.json").read_text())["results"]
    assert {"adam", "soap_fast", "pytorch_optimizer"} == {row["name"] for row in rows}


def test_the_rate_to_start_from_is_what_searches_found():
    said = "Two to five times Adam's: [the demo's search](bench/lic/search.json) found 2."
    assert said in README.read_text()
    compared = ROOT / "bench" / "results" / "comparison" / "compare.json"
    rows = [r for r in json.loads(compared.read_text())["results"] if r.get("kind") == "variant"]
    rates = {(row["group"], row["variant"]): row["lr"] for row in rows}
    times = [rates[group, "soap_fast_10"] / rates[group, "adam"] for group, _ in rates]
    assert {round(number) for number in times} <= {2, 3, 4, 5}
    rows = json.loads((ROOT / "bench" / "lic" / "search.json").read_text())["results"]
    best = {row["optimizer"]: row["lr"] for row in rows}
    assert best["soap_fast"] == pytest.approx(2 * best["adam"])


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


class TestTable:
    """The table that `python -m bench readme` makes, of made-up results."""

    def test_a_step_and_a_training_step_beside_adam(self, tmp_path):
        keep(tmp_path / "step" / "elic_cpu.json", STEP)
        keep(tmp_path / "train" / "elic_quarter_cpu.json", TRAIN)
        text = front.markdown(tmp_path, tmp_path).splitlines()
        assert text[2:5] == [
            "| an optimizer step | elic, 2.5 M parameters | 30 | 10 | 3 | 60 | 0.5 | CPU |",
            "| a training step | elic at a quarter of its width, 2.5 M parameters, "
            "2 crops of 64 x 64 | 125 | 100 | 1.25 | - | - | CPU |",
            "",
        ]
        assert "- CPU: made up, 2 threads, torch 1, commit c0ffee" in text
        told = "- Memory of the state of elic: 3.10 times its parameters', Adam's 2.00 times"
        assert told in text

    def test_results_of_a_gpu_come_first_and_rows_stay_few(self, tmp_path):
        for name in front.CPU_FILES:
            keep(tmp_path / name, STEP)
        for name, gpu in (("no_gpu", None), ("made_up_9000", "Made Up 9000")):
            folder = tmp_path / name
            for file in front.GPU_FILES:
                keep(folder / file, STEP, gpu=gpu, driver="1.2")
        text = front.markdown(tmp_path, tmp_path).splitlines()
        places = [line.split("|")[-2].strip() for line in text if line.startswith("| an")]
        assert places == ["Made Up 9000", "Made Up 9000", "CPU", "CPU"]
        assert "- Made Up 9000, driver 1.2, made up, 2 threads, torch 1, commit c0ffee" in text
        page = "made_up_9000/report.md"
        assert text[-1] == f"- All results of the Made Up 9000: [{page}]({page})"

    def test_steps_to_adams_loss_are_told_where_the_seeds_tell_a_difference(self, tmp_path):
        keep(tmp_path / "step" / "elic_cpu.json", STEP)
        keep(tmp_path / "comparison" / "compare.json", COMPARED)
        text = front.markdown(tmp_path, tmp_path)
        assert " ".join(text.split()).endswith(
            "- Steps to [Adam's final loss](comparison/report.md), 4 seeds: elic x 0.125, "
            "soap_fast 105 ± 11, Adam 219 ± 15; tcm x 0.1, no difference that these seeds can tell"
        )

    def test_without_results_it_says_what_to_measure(self, tmp_path):
        with pytest.raises(BadInput, match=r"step/elic_cpu\.json.*measure them first"):
            front.markdown(tmp_path, tmp_path)


def row(name, mean, **more):
    return {"name": name, "mean_ms": mean, "parameters": 2_500_000, **more}


STEP = [
    row("soap_fast", 30.0, shapes="elic", state_ratio=3.1),
    row("adamw", 10.0, shapes="elic", state_ratio=2.0),
    row("pytorch_optimizer", 60.0, shapes="elic", state_ratio=3.1),
    {"name": "heavyball", "missing": "pip install heavyball"},
]
_AS = {"model": "elic", "batch": 2, "crop": 64, "width": 0.25}
TRAIN = [row("adam", 100.0, **_AS), row("soap_fast", 125.0, **_AS)]


def steps(group, means, spreads, told, **more):
    names = {"of": "soap_fast", "and": "adam", "to_reach": "adam", "measure": "steps_to_adam"}
    numbers = {"group": group, "means": means, "spreads": spreads, "of_seeds": [4, 4]}
    return {"kind": "difference", **names, **numbers, "told": told, **more}


COMPARED = [
    {"kind": "variant", "variant": "adam"},
    steps("elic x 0.125", [105.2, 218.9], [10.7, 15.1], True),
    steps("elic x 0.125", [5.0, 6.0], [0.1, 0.1], True, measure="rd_loss"),
    steps("elic x 0.125", [105.2, 111.0], [10.7, 15.1], False, **{"and": "pytorch_optimizer"}),
    steps("tcm x 0.1", [60.0, 70.0], [20.0, 20.0], False),
]


def keep(path, rows, **machine):
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": "made up", "threads": 2, **machine}
    content = {"machine": machine, "versions": {"torch": "1"}, "commit": "c0ffee", "results": rows}
    path.write_text(json.dumps(content))
