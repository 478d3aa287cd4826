"""`python -m bench.lic eval`: what is measured, what is compared, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.lic.__main__ import main
from bench.lic.commands.evaluate import image_sets
from bench.lic.data import load
from bench.lic.evaluation.curves import RDPoint, against, bd_rate, points
from bench.lic.evaluation.quality import measure, padded
from bench.lic.models import build
from bench.lic.style import write_page
from bench.lic.training import Config, Training, evaluate, run

FACTOR = 1 / 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three smooth images, of sides that are no multiples of 64, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        y, x = np.mgrid[: 70 + 5 * index, :90] / 20
        planes = [np.sin((c + 1) * x + index) * np.cos(y + c) for c in range(3)]
        pixels = (127.5 * (1 + np.stack(planes, axis=2))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders adam_1, adam_2, soap_fast_1, soap_fast_2 of short runs, at two lambdas."""
    folder = tmp_path_factory.mktemp("runs")
    images = load(str(data), 64, 64)
    for optimizer in ("adam", "soap_fast"):
        for number, lam in enumerate((0.005, 0.02), start=1):
            made = config(optimizer, lam=lam, optimizer_options={"betas": (0.9, 0.99)})
            run(Training(made, images), folder / f"{optimizer}_{number}")
    return folder


def config(optimizer: str, **other: Any) -> Config:
    fields = {"lam": 0.01, "lr": 1e-3, "steps": 3, "batch": 1, "crop": 64, "images": "given"}
    return Config(model="hyperprior", factor=FACTOR, optimizer=optimizer, **{**fields, **other})


# What is measured


def test_an_image_of_fitting_sides_is_measured_as_in_training() -> None:
    torch.manual_seed(0)
    model = build("hyperprior", FACTOR)
    pixels = torch.randint(256, (3, 128, 64), dtype=torch.uint8)
    expected = evaluate(model, [pixels], 0.01, "cpu")
    score, decoded = measure(model.eval(), pixels)
    assert score.bpp == pytest.approx(expected.bpp, rel=tolerances.BPP)
    assert score.psnr == pytest.approx(expected.psnr, rel=tolerances.BPP)
    assert decoded.shape == pixels.shape


def test_padding_costs_bits_but_no_pixels_and_no_psnr() -> None:
    torch.manual_seed(0)
    model = build("hyperprior", FACTOR).eval()
    pixels = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    score, decoded = measure(model, pixels)
    image = padded(pixels[None].float() / 255, 64)
    assert image.shape == (1, 3, 128, 128)
    with torch.no_grad():
        coded = model(image)
    bits = -sum(p.log2().sum().item() for p in coded.likelihoods)
    assert score.bpp == pytest.approx(bits / (70 * 90), rel=tolerances.BPP)
    inside = coded.images[0, :, :70, :90].clamp(0, 1)
    torch.testing.assert_close(decoded, inside, **tolerances.PLAIN)
    mse = (inside - pixels / 255).square().mean().item()
    assert score.psnr == pytest.approx(-10 * math.log10(mse), rel=tolerances.BPP)


@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([64, 128]))
def test_padded_sides_fit_and_the_image_is_still_there(
    height: int, width: int, stride: int
) -> None:
    image = torch.rand(1, 3, height, width)
    larger = padded(image, stride)
    assert torch.equal(larger[:, :, :height, :width], image)
    for side, original in zip(larger.shape[2:], (height, width), strict=True):
        assert side % stride == 0
        assert side - original < stride


# Curves


CURVE = [RDPoint(lam, 0.1 * 2**k, 28 + 2.5 * k, 1) for k, lam in enumerate((1, 2, 3, 4, 5))]


def test_ten_per_cent_fewer_bits_are_a_bd_rate_of_minus_ten() -> None:
    fewer = [point._replace(bpp=0.9 * point.bpp) for point in CURVE]
    assert bd_rate(CURVE, fewer).percent == pytest.approx(-10, abs=tolerances.BD_RATE)
    assert bd_rate(fewer, CURVE).percent == pytest.approx(100 / 9, abs=tolerances.BD_RATE)
    assert bd_rate(CURVE, fewer[1:]).percent == pytest.approx(-10, abs=tolerances.BD_RATE)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (CURVE[:3], "values of lambda in common: 3; BD-rate needs at least 4"),
        ([p._replace(psnr=30.0) for p in CURVE], "does not rise with lambda"),
        ([p._replace(psnr=p.psnr + 50) for p in CURVE], "share 0.00 dB of the 10.00 dB"),
        ([p._replace(psnr=p.psnr + 5.1) for p in CURVE], "share 4.90 dB of the 10.00 dB"),
    ],
)
def test_where_there_is_no_bd_rate_it_is_said_why(test: list[RDPoint], reason: str) -> None:
    percent, said = bd_rate(CURVE, test)
    assert percent is None
    assert reason in said


def test_half_of_the_smaller_range_is_enough_to_compare() -> None:
    higher = [point._replace(psnr=point.psnr + 4.9) for point in CURVE]
    expected = 100 * (2 ** (-4.9 / 2.5) - 1)
    found = bd_rate(CURVE, higher).percent
    assert found == pytest.approx(expected, abs=tolerances.BD_RATE_PART)


def test_a_rate_that_cannot_be_interpolated_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bjontegaard.bd_rate", lambda *given, **other: math.nan)
    assert bd_rate(CURVE, CURVE) == (None, "the curves cannot be interpolated: see their points")


def test_each_of_adams_curves_is_an_anchor() -> None:
    curves = {"adam (plain)": CURVE, "adam (amsgrad True)": CURVE, "soap_fast": CURVE}
    pairs = [(row["variant"], row["anchor"]) for row in against(list(curves)[:2], curves)]
    assert pairs == [
        ("adam (amsgrad True)", "adam (plain)"),
        ("soap_fast", "adam (plain)"),
        ("soap_fast", "adam (amsgrad True)"),
    ]
    (row,) = against([], {"soap_fast": CURVE})
    assert row["reason"] == "no run of adam in this group"


def test_seeds_of_one_lambda_make_one_point() -> None:
    found = points([(0.02, 1.0, 30.0), (0.01, 0.5, 27.0), (0.02, 2.0, 32.0)])
    assert found == [RDPoint(0.01, 0.5, 27.0, 1), RDPoint(0.02, 1.5, 31.0, 2)]


# The command


def test_an_evaluation_leaves_a_report_pictures_and_json(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sorted(str(folder) for folder in trained.iterdir())
    assert main(["eval", *runs, "--data", str(data), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "values of lambda in common: 2; BD-rate needs at least 4" in printed.out
    assert "broken.png" in printed.err
    write_page(tmp_path / "printed.md", printed.out)
    assert (tmp_path / "printed.md").read_text() in (tmp_path / "report.md").read_text() + "\n"
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        "rate_distortion.png",
        "reconstructions_1_lambda_0.005.png",
        "reconstructions_1_lambda_0.02.png",
    }
    rows = json.loads((tmp_path / "eval.json").read_text())["results"]
    of_runs = [row for row in rows if row["kind"] == "run"]
    assert [row["run"] for row in of_runs] == runs
    for row in of_runs:
        assert [image["image"] for image in row["images"]] == ["0.png", "1.png", "2.png"]
        assert row["bpp"] == pytest.approx(sum(i["bpp"] for i in row["images"]) / 3)
    assert len([row for row in rows if row["kind"] == "to_adams_loss"]) == 4


def test_a_shorter_run_is_compared_where_that_is_asked_for(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    made = config("soap_fast", lam=0.005, steps=2)
    run(Training(made, load(str(data), 64, 64)), short)
    runs = [str(trained / "adam_1"), str(short), "--data", str(data), "--out", str(tmp_path)]
    assert main(["eval", *runs]) == 0
    assert "2 groups, not compared with each other" in capsys.readouterr().out
    assert main(["eval", *runs, "--across", "steps"]) == 0
    printed = capsys.readouterr().out
    assert "groups" not in printed
    assert "soap_fast (steps 2)" in printed


def test_coded_images_are_reported_with_the_bits_of_their_bytes(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("constriction")
    given = ["--data", str(data), "--out", str(tmp_path), "--coded"]
    assert main(["eval", str(trained / "adam_1"), *given]) == 0
    assert "bpp of the bytes" in capsys.readouterr().out
    row = json.loads((tmp_path / "eval.json").read_text())["results"][0]
    for image in row["images"]:  # so small that 64 bits of header and last word are 1 % and more
        bits = (image["coded_bpp"] - image["bpp"]) * image["height"] * image["width"]
        assert abs(bits) < 100 + 0.01 * image["bpp"] * image["height"] * image["width"]


def test_a_diverged_run_is_left_out_and_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((trained / "adam_1" / "result.json").read_text())
    content["results"][0]["rd_loss"] = None
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert main(["eval", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "diverged at step 3; it is left out" in said
    assert "every run named has diverged" in said


def test_data_sets_of_one_name_are_told_apart_by_their_folders(data: Path, tmp_path: Path) -> None:
    for part in ("valid", "test"):
        folder = tmp_path / part / "same"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes((data / "0.png").read_bytes())
    other = tmp_path / "test" / "other"
    other.mkdir()
    (other / "0.png").write_bytes((data / "0.png").read_bytes())
    folders = [str(tmp_path / "valid" / "same"), str(tmp_path / "test" / "same"), str(other)]
    names = [found.name for found in image_sets(folders)]
    assert names == ["folder same (valid/same)", "folder same (test/same)", "folder other"]


def test_what_is_no_run_is_refused_in_one_line(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    good = str(trained / "adam_1")
    (tmp_path / "mixed").mkdir()
    for file, source in (("result.json", "adam_1"), ("model.pt", "adam_2")):
        (tmp_path / "mixed" / file).write_bytes((trained / source / file).read_bytes())
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "result.json").write_text('{"machine": {}, "results": []}')
    for arguments, reason in [
        ([str(tmp_path / "none")], "No such file or directory; name the --out of a finished"),
        ([str(tmp_path / "demo")], "is not of one run"),
        ([str(tmp_path / "mixed")], "model.pt and result.json are of two runs"),
        ([good, "--data", str(data), "--data", str(data)], "more than once; leave one out"),
        ([good, "--data", str(tmp_path / "nowhere")], "no such folder"),
    ]:
        assert main(["eval", *arguments, *out]) == 2
        said = capsys.readouterr().err
        assert reason in said.splitlines()[-1], said
