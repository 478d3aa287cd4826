"""`python -m bench report`: made-up results of every kind on one page, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main as bench
from bench.device import ledger
from bench.output.files import ResultFile, read
from bench.report import kinds, phases, roofline
from bench.report.markdown import table

PNG = b"\x89PNG"
MACHINE = {"processor": "made up", "cores": 2, "threads": 2, "gpu": None, "driver": None}
GPU = {**MACHINE, "gpu": "imagined", "driver": "1"}

STEP = [
    {"name": "soap_fast", "shapes": "tiny", "device": "cpu", "first_ms": 4.0, "plain_ms": 1.25,
     "refresh_ms": 3.0, "mean_ms": 1.5, "speedup": 1.0},
    {"name": "adamw", "shapes": "tiny", "device": "cpu", "first_ms": 1.0, "plain_ms": 0.5,
     "refresh_ms": None, "mean_ms": 0.5, "speedup": 0.33},
    {"name": "heavyball", "missing": "pip install heavyball"},
    {"name": "oracle", "shapes": "tiny", "device": "cpu", "failed": "RuntimeError: no"},
]  # fmt: skip
SCALING = [
    {"sweep": "width", "axis": "width d", "x": d, "first_ms": 1.0 * d, "plain_ms": 2.0 * d,
     "refresh_ms": None, "mean_ms": 2.0 * d}
    for d in (10, 20, 40)
] + [
    {"sweep": "width", "metric": "plain_ms", "exponent": 1.0, "factor": 2.0, "stderr": 0.01,
     "start": 10, "end": 40, "points": 3}
]  # fmt: skip
ROOF = [
    {"roof": "copy", "value": 10.0, "unit": "GB/s", "device": "cpu"},
    {"roof": "gemm_float32", "value": 100.0, "unit": "GFLOP/s", "device": "cpu"},
    {"roof": "host_call", "value": 2.0, "unit": "us", "device": "cpu"},
]
KERNELS = [
    {"name": "step_", "phase": "plain", "by": "native", "device": "cpu", "us": 100.0,
     "flops": 5e6, "bytes": 1e6, "share": 0.5},
    {"name": "adam", "phase": "plain", "by": "native", "device": "cpu", "us": 10.0, "flops": 0,
     "bytes": 1e6, "share": None},
    {"name": "begin", "phase": "first", "by": "native", "device": "cpu", "us": 10.0,
     "flops": None, "bytes": None, "share": None},
]  # fmt: skip
SUITE = {
    "machine_info": {**MACHINE, "versions": {"torch": "1"}},
    "commit_info": {"id": "abc"},
    "benchmarks": [
        {
            "name": "test_op[x]",
            "fullname": "t::test_op[x]",
            "stats": {"median": 1e-3},
            "extra_info": {
                "op": "refresh_", "shapes": "tiny", "backend": "eager", "device": "cpu",
                "flops": 7e6, "bytes": 1e6, "launches": 3, "share_of_roof": 0.1,
                "roof_flops_per_second": 50e9, "roof_bytes_per_second": 5e9,
            },
        }
    ],
}  # fmt: skip


def result(rows, machine=MACHINE):
    return {"machine": machine, "versions": {"torch": "1"}, "commit": "c0ffee", "results": rows}


@pytest.fixture
def folder(tmp_path):
    """Writes results into a folder."""

    def written(**contents):
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return tmp_path

    return written


def test_a_page_of_everything(folder, tmp_path, capsys):
    results = folder(
        step=result(STEP), scaling=result(SCALING), roof=result(ROOF), kernels=result(KERNELS),
        suite=SUITE,
    )  # fmt: skip
    out = tmp_path / "deep" / "page"
    assert bench(["report", str(results), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    for title in ("Cost against size", "Steps by phase", "Roofline", "Ops, by pytest-benchmark"):
        assert f"## {title}\n" in text
    for name in ("scaling.png", "steps.png", "roofline.png"):
        assert f"({name})" in text
        assert (out / name).read_bytes().startswith(PNG)
    assert "1.00 ± 0.01" in text
    assert "1.25" in text
    assert "pip install heavyball" in text
    assert "RuntimeError: no" in text
    assert "made up, 2 threads, torch 1, commit c0ffee" in text
    assert "No roofs" not in text
    table = capsys.readouterr().out
    assert all(kind in table for kind in ("step", "scaling", "roof", "kernels", "suite"))


def test_without_matplotlib_the_page_says_what_is_not_drawn(folder, tmp_path, monkeypatch):
    results = folder(step=result(STEP), scaling=result(SCALING))
    monkeypatch.setattr("bench.report.page.find_spec", lambda name: None)
    assert bench(["report", str(results), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("Not drawn, matplotlib is not installed: ") == 2
    assert "1.00 ± 0.01" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


def test_cells_cannot_end_a_table():
    assert table(["name", "x"], [["a|b", 1234.5], [None, 2]]) == (
        "| name | x |\n| --- | ---: |\n| a\\|b | 1234 |\n| - | 2 |\n"
    )


def test_what_is_not_known_is_named_and_not_fatal(folder, tmp_path, capsys):
    results = folder(
        step=result(STEP),
        strange=result([{"colour": "blue"}]),
        empty=result([]),
        other=[1, 2],
        broken="{",
    )
    target = tmp_path / "rows" / "found.json"
    options = ["--out", str(tmp_path / "out"), "--json", str(target)]
    assert bench(["report", str(results), *options]) == 0
    said = capsys.readouterr().err
    assert "strange.json: of no kind that is known, left out" in said
    assert "empty.json: of no kind" in said
    assert "other.json is no result file" in said
    assert "broken.json is not JSON" in said
    (row,) = json.loads(target.read_text())["results"]
    assert (row["kind"], row["rows"], row["commit"]) == ("step", 4, "c0ffee")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere.json"], "nowhere.json: No such file or directory"),
        ([__file__], "is not JSON"),
        (["{empty}"], "nothing to report: results of scaling, roof, "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(paths, message, tmp_path, capsys):
    paths = [path.replace("{empty}", str(tmp_path)) for path in paths]
    assert bench(["report", *paths, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_output_that_cannot_be_written(folder, capsys):
    results = folder(step=result(STEP))
    assert bench(["report", str(results), "--out", f"{__file__}/below"]) == 2
    assert "--out " in capsys.readouterr().err


class TestKinds:
    def test_files_of_this_repository_are_known(self):
        root = Path(__file__).parent.parent / "bench" / "results"
        for path in root.rglob("*.json"):
            if path.name != ledger.FILE:  # of `bench device`, beside its results
                kind = kinds.kind_of(read(str(path)))
                words = {path.parent.name, *path.stem.replace("graphs", "step").split("_")}
                assert kind.name in words, path

    def test_a_result_whose_first_peer_is_missing(self):
        rows = [STEP[2], STEP[0]]
        file = ResultFile("x", MACHINE, {}, None, rows, by_plugin=False)
        assert kinds.kind_of(file).name == "step"


class TestRoofline:
    def charts(self, *files):
        return roofline.charts(
            ResultFile("x", machine, {}, None, rows, by_plugin=False) for machine, rows in files
        )

    def test_points_stand_under_the_roofs_of_their_machine(self):
        other = {**MACHINE, "processor": "another"}
        charts = self.charts((MACHINE, KERNELS), (MACHINE, ROOF), (other, ROOF))
        assert list(charts) == [("made up", "cpu")]  # the other one has no points
        (chart,) = charts.values()
        assert chart.copy == 10e9
        assert chart.products == {"float32": 100e9}
        (point,) = chart.points  # without flops or time there is none
        assert (point.group, point.by) == ("step_", "native")
        assert point.seconds == pytest.approx(1e-4)

    def test_roofs_that_were_measured_along_and_the_higher_of_two(self):
        told = SUITE["benchmarks"][0]["extra_info"]
        (chart,) = self.charts((MACHINE, [{**told, "seconds": 1e-3}])).values()
        assert (chart.copy, chart.products) == (5e9, {"float32": 50e9})
        both = self.charts((MACHINE, ROOF), (MACHINE, [{**told, "seconds": 1e-3}]))
        assert both["made up", "cpu"].copy == 10e9

    def test_without_roofs_the_page_says_so(self, folder, tmp_path):
        results = folder(kernels=result([{**row, "device": "cuda:0"} for row in KERNELS], GPU))
        assert bench(["report", str(results), "--out", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "report.md").read_text()
        assert "No roofs of imagined, cuda are among these: `python -m bench roof" in text


def test_optimizers_without_times_have_no_bars():
    assert phases.by_model(STEP) == {"tiny": STEP[:2]}
