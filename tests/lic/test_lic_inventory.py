"""`python -m bench.lic shapes`: what it prints, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import shapes
from bench.lic.__main__ import main
from bench.lic.commands.shapes import multiply_adds
from bench.lic.models import MODELS


def test_json_is_an_inventory_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["shapes", "--model", "lalic", "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], len(printed["params"])) == ("lalic", 1270)
    assert printed["multiply_adds_256"] > 1e10
    path = tmp_path / "lalic.json"
    assert main(["shapes", "--model", "lalic", "--json", str(path)]) == 0
    assert json.loads(path.read_text()) == printed
    inventory = shapes.load(str(path))
    assert inventory.numel == shapes.load("lalic").numel


def test_a_table_of_all_models(capsys: pytest.CaptureFixture) -> None:
    assert main(["shapes", "--factor", "0.0625"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in MODELS)
    assert "multiply-adds" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "elix"], "no model 'elix': take elic, tcm_64, tcm_128, lalic, dcae, hyper"),
        (["--json", "-"], "name it by --model"),
        (["--model", "elic", "--json", "."], "is a folder"),
    ],
)
def test_wrong_input_takes_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["shapes", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_multiply_adds_of_known_layers() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ConvTranspose2d(8, 3, 5, stride=2, padding=2, output_padding=1),
        )
    assert multiply_adds(model, 64) == 32 * 32 * (3 * 8 * 25 + 8 * 9 + 8 * 3 * 25)
