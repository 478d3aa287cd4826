"""`python -m bench report`: made-up results on one page, and what is left out."""

from __future__ import annotations

import json

import pytest

from bench import report
from bench.command import ROOT
from bench.envelope import ResultFile

MACHINE = {"processor": "made up", "cores": 2, "threads": 2, "gpu": None, "driver": None}
TIMES = {"first_ms": 1.0, "plain_ms": 0.5, "refresh_ms": None, "mean_ms": 0.5}
STEP = [
    {"name": "soap_fast", "shapes": "tiny", "device": "cpu", **TIMES, "refresh_ms": 3.0},
    {"name": "adamw", "shapes": "tiny", "device": "cpu", **TIMES, "speedup": 0.33},
    {"name": "heavyball", "missing": "pip install heavyball"},
]
ROOF = [
    {"roof": "copy", "value": 10.0, "unit": "GB/s", "device": "cpu"},
    {"roof": "gemm_float32", "value": 100.0, "unit": "GFLOP/s", "device": "cpu"},
]
KERNELS = [
    {"name": "step_", "by": "native", "device": "cpu", "us": 100.0, "flops": 5e6, "bytes": 1e6},
    {"name": "begin", "by": "native", "device": "cpu", "us": 10.0, "flops": None, "bytes": None},
]


def result(command, rows, **machine):
    versions = {"torch": "1", "numpy": "2"}
    about = {"machine": {**MACHINE, **machine}, "versions": versions, "commit": "c0ffee"}
    return {"command": command, **about, "results": rows}


@pytest.fixture
def page(tmp_path, bench_rows):
    """The page of contents by name, written as files, and the rows of the command."""

    def written(**contents):
        folder = tmp_path / "results"
        folder.mkdir()
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{name}.json").write_text(text)
        rows = bench_rows("report", str(folder), "--out", str(tmp_path / "out"))
        return (tmp_path / "out" / "report.md").read_text(), rows

    return written


def test_a_page_of_everything(page, tmp_path):
    text, _ = page(
        step=result("step", STEP), roof=result("roof", ROOF), kernels=result("kernels", KERNELS)
    )
    for title in ("Roofs", "Steps by phase", "Roofline"):
        assert f"## {title}\n" in text
    for name in ("steps.png", "roofline.png"):
        assert f"({name})" in text
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "| adamw | tiny | 1 | 0.5 | - | 0.5 | 0.33 |" in text
    assert "pip install heavyball" in text
    assert "made up, 2 threads,\ntorch 1, commit c0ffee" in text
    assert "No roofs" not in text


def test_what_cannot_be_drawn_and_what_is_not_known_is_said(page, monkeypatch, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    text, rows = page(
        step=result("step", STEP),
        kernels=result("kernels", [{**row, "device": "cuda:0"} for row in KERNELS], gpu="imagined"),
        strange=result("colours", [{"colour": "blue", "of": [1]}]), other=[1, 2], broken="{",
        damaged=result("step", [3]), empty=result("step", []),
    )  # fmt: skip
    assert "## `colours`\n" in text
    assert "\n| colour |\n| --- |\n| blue |\n" in text
    assert text.count("Not drawn, matplotlib is not installed: ") == 2
    assert "No roofs of imagined, cuda are among these: `python -m bench roof" in text
    said = capsys.readouterr().err
    assert "empty.json has no rows, left out" in said
    for name in ("other", "broken", "damaged"):
        assert f"{name}.json is nothing that --json has written" in said
    found = {row["command"]: row["rows"] for row in rows}
    assert found == {"kernels": 2, "step": 3, "colours": 1}


def test_points_stand_under_the_roofs_of_their_machine():
    files = [(MACHINE, KERNELS), (MACHINE, ROOF), ({**MACHINE, "processor": "another"}, ROOF)]
    higher = [{**row, "value": 2 * row["value"]} for row in ROOF]
    for roofs, copy in (([], 10e9), ([(MACHINE, higher)], 20e9)):  # of two the higher
        found = report.charts(
            ResultFile("x", None, machine, {}, None, rows) for machine, rows in files + roofs
        )
        assert list(found) == ["made up, cpu"]  # the other one has no points
        points, roofs = found["made up, cpu"]
        assert roofs == (copy, {"float32": 10 * copy})
        assert points == [("step_", "native", 5e6, 1e6, pytest.approx(1e-4))]


def test_all_results_are_on_the_page_that_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    for name in ("draw_phases", "draw_roofline"):
        monkeypatch.setattr(report, name, lambda *_: None)
    report.write(report.found(["bench/results"]), tmp_path)
    assert "left out" not in capsys.readouterr().err
    again = "run: python -m bench report bench/results --out docs/measured"
    kept = ROOT / "docs" / "measured"
    assert (kept / report.PAGE).read_text() == (tmp_path / report.PAGE).read_text(), again
    assert all(path.stat().st_size < 200_000 for path in kept.iterdir())
