"""`python -m bench.lic train` as a user meets it: its files, resuming, any optimizer or model."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import tolerances
import torch

from bench.files import BadInput
from bench.lic.__main__ import main
from bench.lic.models import MeanScaleHyperprior
from bench.lic.training import Training, load_model

STAND_IN = "lic.compressai_like:Autoencoder"


def tiny(data: Path, out: Path, *more: str) -> list[str]:
    """`more` is last, and so overrides."""
    flags = ["--model=hyperprior", f"--factor={1 / 24}", "--crop=64", "--batch=2", "--steps=6"]
    flags += ["--lr=2e-3", "--precondition-frequency=3", "--threads=1", "--checkpoint-every=2"]
    return ["train", f"--data={data}", f"--out={out}", *flags, *more]


def foreign(data: Path, out: Path, *more: str) -> list[str]:
    return tiny(data, out, f"--model={STAND_IN}", "--factor=1", "--crop=32", *more)


def result(out: Path) -> dict:
    (only,) = json.loads((out / "result.json").read_text())["results"]
    return only


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model.pt", weights_only=True)["model"]


def test_a_finished_run_leaves_model_result_and_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere" / "copy.json"
    assert main(tiny(data, tmp_path, "--optimizer=adam", "--no-flip", f"--json={target}")) == 0
    found = result(tmp_path)
    assert json.loads(target.read_text())["results"] == [found]
    assert found["optimizer"] == "adam"
    assert found["steps"] == 6
    assert [point["step"] for point in found["curve"]] == [1, 2, 3, 4, 5, 6]
    assert found["rd_loss"] == found["curve"][-1]["rd_loss"]
    assert found["config"]["lam"] == 0.013
    assert found["config"]["model"] == "hyperprior"
    assert found["config"]["flip"] is False
    assert found["peak_memory"] > 0
    model, config = load_model(tmp_path)
    assert isinstance(model, MeanScaleHyperprior)
    assert not model.training
    assert config == found["config"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights(tmp_path)[name])
    assert f"R-D loss {found['rd_loss']:.4f}" in capsys.readouterr().err


KINDS = {
    "plateau": ["--schedule=plateau", "--patience=0", "--gamma=0.5", "--evaluate-every=1"],
    "multistep": ["--schedule=multistep", "--milestones", "2", "5"],
    "fp16": ["--amp=fp16"],
    "bf16": ["--amp=bf16", "--optimizer=pytorch_optimizer"],
    "workers": ["--workers=2"],
    "channels last": ["--channels_last"],
    "another's optimizer": ["--optimizer=torch.optim:SGD", "--optimizer-option=momentum=0.9"],
    "another's model": [f"--model={STAND_IN}", "--factor=1", "--crop=32"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stops_anywhere_ends_in_the_same_bits(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert main(tiny(data, straight, *KINDS[kind])) == 0
    step = Training.step

    def stops_in_the_sixth(training: Training) -> object:
        if training.steps == 5:
            raise KeyboardInterrupt
        return step(training)

    monkeypatch.setattr(Training, "step", stops_in_the_sixth)
    assert main(tiny(data, halting, *KINDS[kind])) == 130
    monkeypatch.undo()
    assert not (halting / "model.pt").exists()
    assert main(tiny(data, halting, *KINDS[kind], "--resume")) == 0
    first, second = weights(straight), weights(halting)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [[point["rd_loss"] for point in result(out)["curve"]] for out in (straight, halting)]
    assert curves[0] == curves[1]


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    for workers in ("0", "1"):
        assert main(tiny(data, tmp_path / workers, f"--workers={workers}", "--steps=3")) == 0
    first, second = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_files_found_unusable_while_training_are_named_and_counted(
    workers: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.lic.data.images.KEPT_IMAGES", 2)  # now the folder is a large one
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "3.png").write_bytes((copy / "2.png").read_bytes()[:600])
    assert main(tiny(copy, tmp_path, f"--workers={workers}")) == 0
    said = capsys.readouterr().err
    assert said.count("3.png") == 1
    assert "1 files skipped in all" in said


def test_another_seed_is_another_run_and_resuming_as_it_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path)) == 0
    assert main(tiny(data, tmp_path, "--resume", "--seed=1", "--schedule=constant")) == 2
    said = capsys.readouterr().err
    assert "seed is 1, was 0" in said
    assert "schedule is constant, was cosine" in said


def test_epochs_are_times_that_every_image_is_drawn(data: Path, tmp_path: Path) -> None:
    arguments = [a for a in tiny(data, tmp_path, "--epochs=5") if not a.startswith("--steps")]
    assert main(arguments) == 0
    assert result(tmp_path)["steps"] == 5  # two images to train on, two crops in a step


def test_options_reach_the_optimizer(data: Path, tmp_path: Path) -> None:
    more = ["--optimizer-option=betas=(0.5, 0.9)", "--optimizer-option=refresh_schedule=staggered"]
    assert main(tiny(data, tmp_path, *more)) == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    (group,) = state["training"]["optimizer"]["param_groups"]
    assert tuple(group["betas"]) == (0.5, 0.9)
    assert group["refresh_schedule"] == "staggered"
    assert group["precondition_frequency"] == 3
    assert group["weight_decay"] == 0


def test_the_rate_of_the_last_step_is_the_schedules(data: Path, tmp_path: Path) -> None:
    assert main(tiny(data, tmp_path, *KINDS["multistep"])) == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["training"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-5)


def test_a_model_of_compressais_manners_trains_and_is_loaded(data: Path, tmp_path: Path) -> None:
    assert main(foreign(data, tmp_path, "--optimizer=adam", "--steps=30", "--lr=1e-2")) == 0
    curve = result(tmp_path)["curve"]
    assert curve[-1]["rd_loss"] < 0.8 * curve[0]["rd_loss"]
    model, _ = load_model(tmp_path)
    quantiles = model.net.entropy_bottleneck.quantiles
    # 30 steps of Adam, of 1e-3.
    assert quantiles[0, 0, 0].item() == pytest.approx(-10 + 30e-3, abs=tolerances.THIRTY_STEPS)
    assert model(torch.rand(1, 3, 32, 48)).images.shape == (1, 3, 32, 48)


def test_a_foreign_entropy_model_leaves_autocast_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Training] = []
    start = Training.__init__

    def noted(training: Training, *given: object) -> None:
        start(training, *given)
        made.append(training)

    monkeypatch.setattr(Training, "__init__", noted)
    assert main(foreign(data, tmp_path, "--amp=bf16", "--steps=2")) == 0
    net = made[0].model.net
    assert set(net.entropy_bottleneck.seen + net.gaussian.seen) == {torch.float32}


class FakeWriter:
    """In place of TensorBoard's."""

    made: list[FakeWriter]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, {}, False
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_is_told_of_every_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.SimpleNamespace(SummaryWriter=FakeWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    FakeWriter.made = []
    more = [f"--tensorboard={tmp_path / 'board'}", "--evaluate-every=3"]
    assert main(tiny(data, tmp_path, *more)) == 0
    (writer,) = FakeWriter.made
    assert writer.folder == str(tmp_path / "board")
    assert writer.purge_step == 1
    assert [step for step, _ in writer.scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert writer.scalars["train/lr"][0] == (1, 2e-3)
    expected = [(point["step"], point["rd_loss"]) for point in result(tmp_path)["curve"]]
    assert writer.scalars["held_out/loss"] == expected
    assert writer.closed


def test_tensorboards_own_writer_takes_it(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert main(tiny(data, tmp_path, f"--tensorboard={tmp_path / 'board'}", "--steps=2")) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in seen.Scalars("held_out/psnr")] == [1, 2]


def test_tensorboard_that_is_missing_is_said_before_training(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(tiny(data, tmp_path, "--tensorboard=board")) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_run_that_diverges_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path, "--optimizer=torch.optim:SGD", "--lr=1e30")) == 0
    assert "diverged at step" in capsys.readouterr().err
    assert result(tmp_path)["rd_loss"] is None


def test_without_a_model_there_is_none_to_load(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no model\.pt in"):
        load_model(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"torn")
    with pytest.raises(BadInput, match="not readable"):
        load_model(tmp_path)
    torch.save({"step": 1}, tmp_path / "model.pt")
    with pytest.raises(BadInput, match="is no model of"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model=vae"], "no model 'vae': take elic"),
        (["--model=nowhere:Net", "--factor=1"], "cannot take 'nowhere:Net'"),
        ([f"--model={STAND_IN}", "--factor=0.5"], "--factor shrinks the models here"),
        (["--model=lic.compressai_like:needs_arguments", "--factor=1"], "without arguments"),
        (["--model=lic.compressai_like:no_compression_model", "--factor=1"], "aux_loss()"),
        (["--optimizer=sgd"], "no optimizer 'sgd'"),
        (["--optimizer=adam,soap_fast"], "are several"),
        (["--optimizer=torch.optim:Nothing"], "cannot take 'torch.optim:Nothing'"),
        (["--optimizer=math:sqrt"], "is no class of torch.optim.Optimizer"),
        (["--optimizer-option=beta"], "is not name=value"),
        (["--optimizer-option=speed=3"], "--optimizer soap_fast refuses its options (TypeError"),
        (["--lr=fast"], "is not a learning rate"),
        (["--lambda=-1"], "-1 is not a positive number"),
        (["--crop=96"], "--crop 96 is not a positive multiple of 64"),
        (["--crop=128"], "smaller --crop"),
        (["--schedule=multistep"], "give both, or none"),
        (["--milestones", "3"], "give both, or none"),
        (["--schedule=multistep", "--milestones", "5", "3"], "later than the one before"),
        (["--schedule=step"], "invalid choice: 'step'"),
        (["--epochs=2"], "leave one out"),
        (["--sharding=refresh"], "start several by torchrun"),
        (["--sharding=refresh", "--optimizer=adam"], "--sharding is soap_fast's"),
        (["--workers=-1"], "take 0 or more"),
        (["--amp=fp8"], "invalid choice: 'fp8'"),
        (["--resume"], "no checkpoint at"),
        (["--out=/dev/null"], "name another folder"),
        (["--json=/"], "is a folder"),
        (["--data=/nowhere"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = main(tiny(data, tmp_path, *arguments))
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert len([line for line in error.splitlines() if "held out" not in line]) == 1


def test_a_batch_that_processes_cannot_share_is_refused(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(tiny(data, tmp_path)) == 2
    assert "--batch 2 cannot be shared by 3 processes" in capsys.readouterr().err
