"""`python -m bench.lic demo` as a user meets it: Ctrl-C, --resume, --json, wrong input."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.lic.__main__ import main
from bench.lic.commands.options import DEMO_OPTIMIZERS
from bench.lic.style import write_page
from bench.lic.training import checkpoint

ROOT = Path(__file__).parents[2]


def tiny(data: Path, out: Path, *more: str, steps: int = 4) -> list[str]:
    options = {"data": data, "out": out, "steps": steps, "batch": 1, "factor": 1 / 24, "lr": 2e-3}
    flags = [f"--{name}={value}" for name, value in options.items()]
    # One thread: two that share a core with other tests wait for each other most of the time.
    return ["demo", *flags, "--precondition-frequency=3", "--threads=1", *more]


def interrupt_at(line: str, arguments: list[str]) -> str:
    """Run in a process of its own, press Ctrl-C when `line` appears, return standard error."""
    command = [sys.executable, "-m", "bench.lic", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = ""
        for text in process.stderr:
            seen += text
            if text.startswith(line):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, seen
    return seen


def test_ctrl_c_and_resume_give_the_same_bits_for_every_optimizer(
    data: Path, tmp_path: Path
) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert main(tiny(data, straight, steps=96)) == 0
    arguments = tiny(data, halting, steps=96)
    for name in DEMO_OPTIMIZERS:
        seen = interrupt_at(f"{name} 24/96", arguments)
        stopped = re.search(rf"stopped after step (\d+) of {name}; go on with: (.*)", seen)
        assert stopped is not None, seen
        assert 24 <= int(stopped[1]) < 96
        assert stopped[2].endswith("--resume")
        arguments = tiny(data, halting, "--resume", steps=96)
    assert main(arguments) == 0
    for name in DEMO_OPTIMIZERS:
        expected, resumed = (
            torch.load(folder / name / "model.pt")["model"] for folder in (straight, halting)
        )
        assert expected.keys() == resumed.keys()
        for key in expected:
            assert torch.equal(expected[key], resumed[key]), (name, key)
    curves = [
        [[point["rd_loss"] for point in run["curve"]] for run in results(folder / "result.json")]
        for folder in (straight, halting)
    ]
    assert curves[0] == curves[1]


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def test_a_finished_run_leaves_table_picture_json_and_models(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere" / "copy.json"
    assert main(tiny(data, tmp_path, f"--json={target}")) == 0
    printed = capsys.readouterr().out
    as_printed = tmp_path / "as_printed.md"
    write_page(as_printed, printed)
    assert (tmp_path / "table.md").read_text() in as_printed.read_text()
    assert "trains as well as the public SOAP" in printed
    for title in ("R-D loss", "bpp", "PSNR", "ms / step", "optimizer ms", "share"):
        assert title in printed
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
    assert target.read_text() == (tmp_path / "result.json").read_text()
    for result, name in zip(results(target), DEMO_OPTIMIZERS, strict=True):
        assert result["optimizer"] == name
        assert result["steps"] == 4
        assert 0 < result["optimizer_share"] < 1
        assert [point["step"] for point in result["curve"]] == [1, 2, 3, 4]
        assert (tmp_path / name / "model.pt").exists()


def test_resuming_a_finished_run_reports_it_again(data: Path, tmp_path: Path) -> None:
    assert main(tiny(data, tmp_path, "--optimizers=adam")) == 0
    before = results(tmp_path / "result.json")
    assert main(tiny(data, tmp_path, "--optimizers=adam", "--resume")) == 0
    assert results(tmp_path / "result.json") == before


def test_json_to_standard_output_is_all_that_is_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path, "--json=-", "--optimizers=adam")) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["optimizer"] == "adam"


def test_a_missing_optimizer_is_named_and_the_others_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    both = ("--optimizers=adam,pytorch_optimizer",)
    assert main(tiny(data, tmp_path, *both)) == 0
    assert "pytorch_optimizer is missing" in capsys.readouterr().out
    assert [run["optimizer"] for run in results(tmp_path / "result.json")] == ["adam"]
    assert main(tiny(data, tmp_path, "--optimizers=pytorch_optimizer")) == 2


def test_resume_with_another_configuration_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path, "--optimizers=adam")) == 0
    capsys.readouterr()
    assert main(tiny(data, tmp_path, "--optimizers=adam", "--resume", "--seed=5")) == 2
    assert "seed is 5, was 0" in capsys.readouterr().err


def test_resume_without_a_whole_checkpoint_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path, "--resume")) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    (tmp_path / "adam").mkdir()
    (tmp_path / "adam" / "checkpoint.pt").write_bytes(b"torn")
    assert main(tiny(data, tmp_path, "--resume")) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_a_death_while_writing_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"step": 1})

    def die_halfway(state: object, target: io.BufferedWriter) -> None:
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, {"step": 2})
    assert torch.load(path) == {"step": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizers=adam,sgd"], "no optimizer 'sgd'"),
        (["--steps=0"], "0 is not a positive number"),
        (["--batch=-1"], "-1 is not a positive number"),
        (["--lambda=nan"], "nan is not a positive number"),
        (["--lr=fast"], "is not a learning rate"),
        (["--lr=adam=1e-3,sgd=1"], "no optimizer 'sgd'"),
        (["--lr=adam=1e-3"], "gives no rate for soap_fast"),
        (["--crop=65"], "not a positive multiple of 64"),
        (["--device=tpu9"], "is not measured: take cpu or cuda"),
        (["--data=/nowhere"], "no such folder"),
        (["--crop=1024"], "larger than every photo"),
        (["--seed=-1"], "outside [0, 2^63)"),
        (["--json=/"], "is a folder"),
        (["--out=/dev/null"], "name another folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rate = [] if any(argument.startswith("--lr") for argument in arguments) else ["--lr=1e-3"]
    try:
        code = main(["demo", f"--out={tmp_path}", *rate, *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert len([line for line in error.splitlines() if "held out" not in line]) == 1
