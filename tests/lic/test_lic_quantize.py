"""`python -m bench.lic quantize`: what it reports, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from PIL import Image

from bench.lic.__main__ import main
from bench.lic.commands.quantize import FLOAT, WAYS, _bd_rates
from bench.lic.data import load
from bench.lic.training import Config, Training, run


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of two short runs, one by Adam and one by soap_fast."""
    folder = tmp_path_factory.mktemp("runs")
    images = load(str(data), 64, 64)
    for optimizer in ("adam", "soap_fast"):
        config = Config(
            **{"model": "hyperprior", "factor": 1 / 24, "optimizer": optimizer, "lam": 0.01},
            **{"lr": 1e-3, "steps": 2, "batch": 1, "crop": 64, "images": "given"},
        )
        run(Training(config, images), folder / optimizer)
    return [str(folder / optimizer) for optimizer in ("adam", "soap_fast")]


@pytest.fixture
def calibration(data: Path, tmp_path: Path) -> Path:
    """Two images that fit, one that is too small, and a broken one."""
    folder = tmp_path / "calibration"
    folder.mkdir()
    for index in (1, 2):
        (folder / f"{index}.png").write_bytes((data / f"{index}.png").read_bytes())
    save(folder / "0_small.png", 63, 200)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def save(path: Path, height: int, width: int) -> None:
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# What it reports


def test_runs_are_reported_side_by_side(
    trained: list[str],
    data: Path,
    calibration: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos" / "smaller_than_the_stride.png", 40, 70)  # continued, as by eval
    (tmp_path / "photos" / "0.png").write_bytes((data / "0.png").read_bytes())
    given = [f"--data={tmp_path / 'photos'}", f"--calibration={calibration}", "--iterations=50"]
    assert main(["quantize", *trained, *given, f"--json={tmp_path / 'q.json'}"]) == 0
    printed = capsys.readouterr()
    assert "skipped 0_small.png (63x200 pixels, smaller than the model's stride 64)" in printed.err
    assert "broken.png" in printed.out
    _, changes = printed.out.split("## Change of the R-D loss\n\n")
    assert changes.split("\n")[0].replace(" ", "").endswith("|adam|soap_fast|")
    rows = json.loads((tmp_path / "q.json").read_text())["results"]
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in ("quantized", "layers")}
    assert [row["run"] for row in of["layers"]] == trained
    for row in of["layers"]:
        assert len(row["layers"]) == 8
        assert row["error_ratio"] <= 1
        assert not row["entropy_networks"]
        for layer in row["layers"]:
            assert layer["output_error"]["adaround"] <= layer["output_error"]["nearest"]
    for name in trained:
        found = [row for row in of["quantized"] if row["run"] == name]
        assert [row["quantized"] for row in found] == [FLOAT, *WAYS]
        assert all(len(row["images"]) == 2 for row in found)
        for row in found:
            change = row["rd_loss"] / found[0]["rd_loss"] - 1
            assert row["change"] == pytest.approx(change, abs=tolerances.CHANGE_64)
            assert (row["psnr"] == found[0]["psnr"]) == (row is found[0])
    assert "BD-rate needs at least 4" in printed.out


def test_ten_per_cent_more_bits_are_a_bd_rate_of_ten() -> None:
    def row(way: str, step: int, bits: float) -> dict[str, Any]:
        bpp, psnr = bits * 0.1 * 2**step, 28 + 2.5 * step
        return {"set": "photos", "quantized": way, "lam": 0.01 * 2**step, "bpp": bpp, "psnr": psnr}

    rows = [row(FLOAT, step, 1.0) for step in range(4)]
    rows += [row(way, step, 1.1 + 0.1 * k) for k, way in enumerate(WAYS) for step in range(4)]
    found = {one["quantized"]: one["percent"] for one in _bd_rates(rows)}
    assert found == {way: pytest.approx(10 + 10 * k) for k, way in enumerate(WAYS)}


# What it refuses


def test_bad_input_is_one_line(
    trained: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, images in (("empty", 0), ("single", 1), ("small", 2)):
        (tmp_path / name).mkdir()
        for index in range(images):
            save(tmp_path / name / f"{index}.png", 64, 64 if name == "single" else 63)
    folder = f"--data={data}"
    for arguments, reason in [
        ([f"--calibration={tmp_path / 'empty'}"], "--calibration .*empty: no images in it"),
        ([f"--calibration={tmp_path / 'none'}"], "--calibration .*none: no such folder"),
        ([f"--calibration={tmp_path / 'single'}"], "1 usable images .* at least 64x64 pixels"),
        ([f"--calibration={tmp_path / 'small'}"], "0 usable images .* at least 64x64 pixels"),
        ([f"--calibration={data}"], "--calibration and --data are one folder"),
        (["--crop=63"], "--crop 63 is smaller than 64, the model's stride"),
    ]:
        assert main(["quantize", trained[0], folder, *arguments]) == 2
        assert re.search(reason, last(capsys))


def test_a_percentile_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("0", "50", "101", "nan", "x"):
        with pytest.raises(SystemExit):
            main(["quantize", "run", f"--percentile={value}"])
        assert "--percentile" in last(capsys)


def test_a_run_that_cannot_be_quantised_is_left_out_and_named(
    trained: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"--data={data}", "--crop=64", "--iterations=1"]
    monkeypatch.setattr("bench.lic.evaluation.quantization.TRANSFORMS", ("nothing",))
    assert main(["quantize", trained[0], *given]) == 2
    assert "adam: none of the model's 14 layers is in a transform" in last(capsys)
    monkeypatch.undo()
    (tmp_path / "mixed").mkdir()
    for file, source in (("result.json", trained[1]), ("model.pt", trained[0])):
        (tmp_path / "mixed" / file).write_bytes((Path(source) / file).read_bytes())
    assert main(["quantize", trained[0], str(tmp_path / "mixed"), *given]) == 0
    assert "left out the run" in capsys.readouterr().out
