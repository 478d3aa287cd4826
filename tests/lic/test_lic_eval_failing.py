"""What fails in an evaluation is named and left out; the rest is in eval.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.files import readable
from bench.lic.__main__ import main
from bench.lic.data import load
from bench.lic.evaluation import curves, quality
from bench.lic.training import Config, Training, run

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"


def prose(folder: Path) -> str:
    """A report, whatever the place where its lines end."""
    return " ".join((folder / "report.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    images = load(str(data), 64, 64)
    for optimizer in ("adam", "soap_fast"):
        made = Config(
            model="hyperprior", factor=1 / 24, optimizer=optimizer, lam=0.01, lr=1e-3, steps=2,
            batch=1, crop=64, images="given",
        )  # fmt: skip
        run(Training(made, images), folder / optimizer)
    return [folder / "adam", folder / "soap_fast"]


def evaluated(runs: list[Path], data: Path | list[Path], out: Path) -> list[dict[str, Any]]:
    folders = [f"--data={folder}" for folder in (data if isinstance(data, list) else [data])]
    assert main(["eval", *map(str, runs), *folders, f"--out={out}"]) == 0
    return results(out)


def results(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "eval.json").read_text())["results"]
    return [row for row in rows if row["kind"] == "run"]


def images(row: dict[str, Any]) -> list[str]:
    return [image["image"] for image in row["images"]]


def test_dollars_are_no_formula(trained: list[Path], data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1$_{2$ | more"
    folder.mkdir()
    shutil.copy(data / "0.png", folder / "$^{x$.png")
    rows = evaluated(trained, folder, tmp_path / "out")
    assert [images(row) for row in rows] == [["$^{x$.png"]] * 2
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    report = prose(tmp_path / "out")
    assert r"folder 1$_{2$ \| more" in report
    assert report.count("![") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_of_any_bytes_are_told_as_text(
    trained: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(data / "0.png", folder / os.fsdecode(b"\xff.png"))
    (folder / os.fsdecode(b"\xfe.png")).write_text("no image")
    (row, *_) = evaluated(trained, folder, tmp_path / "out")
    assert images(row) == [r"\xff.png"]
    assert row["set"] == r"folder caf\xe9"
    report = prose(tmp_path / "out")
    assert r"caf\xe9/\xfe.png (unreadable" in report
    assert r"\xfe.png" in capsys.readouterr().err


def test_a_locale_without_the_letters_of_a_name_loses_nothing(
    trained: list[Path], data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "写真"
    folder.mkdir()
    shutil.copy(data / "0.png", folder / "犬.png")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ["eval", trained[0], f"--data={folder}", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.lic", *command],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ascii_only},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    (row,) = results(tmp_path)
    assert images(row) == ["犬.png"]
    assert "folder 写真" in prose(tmp_path)


@pytest.mark.parametrize("name", ["plain.png", "犬.png", "é.png"])
def test_a_name_that_is_text_stays_as_it_is(name: str) -> None:
    assert readable(name) == name
    assert readable(os.fsencode(name).decode("ascii", "surrogateescape")) == name
    assert readable("\ud800\n") == r"\ud800\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(NO_MEMORY)])
@pytest.mark.parametrize("when", [0, 1])
def test_what_one_run_fails_on_is_left_out_for_all(
    error: Exception,
    when: int,
    trained: list[Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, seen = quality.measure, []

    def measure(model: nn.Module, pixels: torch.Tensor, name: str, coded: bool) -> object:
        if name == "1.png":
            seen.append(name)
            if len(seen) == when + 1:
                raise error
        return real(model, pixels, name, coded)

    monkeypatch.setattr(quality, "measure", measure)
    rows = evaluated(trained, data, tmp_path)
    assert [images(row) for row in rows] == [["0.png", "2.png"]] * 2
    for row in rows:
        assert row["bpp"] == pytest.approx(sum(one["bpp"] for one in row["images"]) / 2)
    said = f"left out 1.png of folder {data.name} (too large for the memory there is)"
    assert said in prose(tmp_path)


def test_an_image_too_large_to_be_decoded_is_left_out(
    trained: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.lic.data.sources import File

    real = File.pixels

    def pixels(file: File) -> torch.Tensor:
        if file.name.endswith("0.png"):
            raise MemoryError
        return real(file)

    monkeypatch.setattr(File, "pixels", pixels)
    (row,) = evaluated(trained[:1], data, tmp_path)
    assert images(row) == ["1.png", "2.png"]


def test_a_run_or_a_set_without_results_is_left_out(
    trained: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty = tmp_path / "broken", tmp_path / "empty"
    shutil.copytree(trained[1], broken)
    (broken / "model.pt").write_bytes(b"torn")
    empty.mkdir()
    (empty / "0.png").write_text("no image")
    rows = evaluated([broken, trained[0]], [empty, data], tmp_path / "out")
    assert [row["run"] for row in rows] == [str(trained[0])]
    assert [row["set"] for row in rows] == [f"folder {data.name}"]
    said = capsys.readouterr().err
    assert f"left out the run {broken} ({broken / 'model.pt'} is not readable" in said
    assert "left out folder empty (no image" in said


def test_a_picture_that_cannot_be_drawn_costs_no_result(
    trained: list[Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*given: object) -> None:
        assert (tmp_path / "eval.json").exists()
        raise ValueError("no such font")

    monkeypatch.setattr(curves, "reconstructions", fails)
    evaluated(trained, data, tmp_path)
    assert "is left out (ValueError: no such font)" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_text().count("![") == 1


def test_a_missing_package_costs_the_bd_rate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.lic.evaluation.curves import RDPoint, against

    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    curve = [RDPoint(lam, 0.1 * 2**k, 28 + 2.5 * k, 1) for k, lam in enumerate((1, 2, 3, 4))]
    (row,) = against(["adam"], {"adam": curve, "soap_fast": curve})
    assert row["percent"] is None
    assert "pip install" in row["reason"]
