"""What a run leaves behind: when it diverges, is stopped, forgotten to be resumed, or moved."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.files import BadInput
from bench.lic import search
from bench.lic.__main__ import main
from bench.lic.data import load
from bench.lic.training import Config, History, Training, history, load_model, run, runs
from bench.lic.training.history import PER_STEP, summarise

CONFIG = Config(
    model="hyperprior", factor=1 / 24, optimizer="soap_fast", lr=1e-3, lam=0.013,
    steps=6, batch=2, crop=64, precondition_frequency=3,
)  # fmt: skip
FILES = ("checkpoint.pt", "model.pt", "result.json")


def tiny(data: Path, out: Path, *more: str) -> list[str]:
    flags = [f"--factor={1 / 24}", "--model=hyperprior", "--crop=64", "--batch=2", "--steps=6"]
    return ["train", f"--data={data}", f"--out={out}", *flags, "--threads=1", *more]


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())["results"][0]


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, happens: object) -> None:
    step = Training.step

    def stepping(training: Training) -> object:
        if training.steps == number:
            happens(training)
        return step(training)

    monkeypatch.setattr(Training, "step", stepping)


@pytest.fixture
def one_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Training._next_batch

    def drawn(training: Training) -> torch.Tensor:
        images = draw(training)
        return images * torch.nan if training.steps == 3 else images

    monkeypatch.setattr(Training, "_next_batch", drawn)


@pytest.mark.parametrize("optimizer", ["adam", "soap_fast"])
def test_a_run_ended_by_a_loss_that_is_not_finite_has_diverged(
    optimizer: str, data: Path, one_bad_batch: None
) -> None:
    """soap_fast leaves such a gradient out, and would be judged by the weights before it."""
    training = Training(replace(CONFIG, optimizer=optimizer), load(str(data), 64, 64))
    summary = run(training, None)
    assert summary["steps"] == 4
    assert summary["diverged"] is True
    assert [summary[key] for key in ("rd_loss", "bpp", "psnr")] == [None] * 3
    last = summary["curve"][-1]["rd_loss"]
    assert (last is not None) == (optimizer == "soap_fast")
    json.dumps(summary, allow_nan=False)


def test_a_rate_that_diverges_is_not_chosen(data: Path, one_bad_batch: None) -> None:
    images = load(str(data), 64, 64)
    config = replace(CONFIG, lr=1e-3)
    assert search._final_loss(config, images) == float("inf")
    assert search._final_loss(replace(config, steps=3), images) < float("inf")


def test_waiting_for_images_is_no_part_of_a_step(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, draw = [0.0], Training._next_batch

    def late(training: Training) -> torch.Tensor:
        clock[0] += 100
        return draw(training)

    monkeypatch.setattr(Training, "_next_batch", late)
    monkeypatch.setattr(Training, "_now", lambda training: clock[0])
    training = Training(CONFIG, load(str(data), 64, 64))
    training.step()
    training.step()
    assert list(training.history.data_seconds) == [100, 100]
    assert list(training.history.step_seconds) == [0, 0]


@pytest.mark.parametrize(("mode", "seconds"), [("default", 5), (None, 93)])
def test_seconds_are_without_compilation(mode: str | None, seconds: float) -> None:
    """That of the first step, and of the first step after the run was resumed."""
    history = History(starts=[0, 3], evaluated_at=[1, 5], evaluations=[[2, 1, 20], [1, 1, 21]])
    for spent in (50, 1, 1, 40, 1):
        for name in PER_STEP:
            getattr(history, name).append(1)
        history.step_seconds[-1] = spent
    summary = summarise(history, replace(CONFIG, compile=mode))
    assert summary["seconds"] == summary["curve"][-1]["seconds"] == seconds
    assert summary["compile_seconds"] == 93 - seconds
    assert summary["data_seconds"] == 5
    assert summary["diverged"] is False


def test_a_long_history_is_saved_as_tensors() -> None:
    steps, history = 20_000, History()
    for name in PER_STEP:
        getattr(history, name).extend(float(step) / 3 for step in range(steps))
    target = io.BytesIO()
    torch.save(history.state_dict(), target)
    assert target.tell() < 8 * len(PER_STEP) * steps + 5000
    target.seek(0)
    assert History.from_state(torch.load(target, weights_only=True)) == history


def test_forgetting_to_resume_loses_nothing(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(tiny(data, tmp_path)) == 0
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def stop(training: Training) -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, 0, stop)
    assert main(tiny(data, tmp_path)) == 130
    assert "are now *.old" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in FILES)
    assert {name: (tmp_path / f"{name}.old").read_bytes() for name in FILES} == before


def test_a_run_knows_every_machine_and_commit_it_ran_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(training: Training) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(history, "_commit", lambda: "before")
    for step, more in ((4, []), (5, ["--resume"])):
        with monkeypatch.context() as halting:
            at_step(halting, step, stop)
            assert main(tiny(data, tmp_path, "--checkpoint-every=1", *more)) == 130
    monkeypatch.setattr(history, "_commit", lambda: "after")
    assert main(tiny(data, tmp_path, "--resume")) == 0
    parts = result(tmp_path)["ran_on"]
    assert [(part["from_step"], part["commit"]) for part in parts] == [(0, "before"), (5, "after")]
    assert parts[0]["versions"]["torch"] == torch.__version__
    assert parts[0]["machine"]["threads"] == 1
    written = (tmp_path / "result.json").read_bytes()
    monkeypatch.setattr(history, "_commit", lambda: "later")
    monkeypatch.setattr("bench.envelope.commit", lambda: "later")
    assert main(tiny(data, tmp_path, "--resume")) == 0
    assert (tmp_path / "result.json").read_bytes() == written


def test_a_run_killed_before_its_result_was_written_gets_it(data: Path, tmp_path: Path) -> None:
    assert main(tiny(data, tmp_path)) == 0
    expected = result(tmp_path)
    (tmp_path / "result.json").unlink()
    assert main(tiny(data, tmp_path, "--resume")) == 0
    assert result(tmp_path) == expected


@pytest.mark.parametrize(("more", "at"), [([], [6]), (["--checkpoint-every=2"], [2, 4, 6])])
def test_checkpoints_are_a_minute_apart_unless_told(
    more: list[str],
    at: list[int],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = []
    monkeypatch.setattr("bench.lic.commands.train.CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(runs, "_save", lambda training, folder: saved.append(training.steps))
    assert main(tiny(data, tmp_path, *more)) == 0
    assert saved == at


def test_a_checkpoint_is_due_after_its_steps_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    pace, due = runs.Pace(steps=3, seconds=60, done=5), []
    for done in range(6, 20):
        now[0] += 15
        if pace.due(done, last=done == 19):
            due.append(done)
    assert due == [9, 13, 17, 19]


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows")
def test_a_machine_that_is_taken_away_leaves_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells all its processes, those that read images as well."""

    def told(training: Training) -> None:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # else it would end the tests
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert main(tiny(data, straight)) == 0
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as here:
        at_step(here, 3, told)
        assert main(tiny(data, halting, "--workers=1")) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert main(tiny(data, halting, "--resume")) == 0
    ends = [torch.load(out / "model.pt")["model"] for out in (straight, halting)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_checkpoint_of_another_version_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(data, tmp_path)) == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**state, "format": 1}, tmp_path / "checkpoint.pt")
    assert main(tiny(data, tmp_path, "--resume")) == 2
    assert "written by another version" in capsys.readouterr().err


def test_a_model_of_other_shapes_is_refused(data: Path, tmp_path: Path) -> None:
    assert main(tiny(data, tmp_path)) == 0
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    saved["config"]["factor"] = 1 / 16
    torch.save(saved, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"does not fit hyperprior at 0\.0625 of its widths"):
        load_model(tmp_path)


def test_of_several_processes_the_first_alone_refuses(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, said in (("0", "cannot be shared by 3"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main(tiny(data, tmp_path)) == 2
        error = capsys.readouterr().err
        assert (said in error) if said else not error


def test_two_models_are_never_held_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, made = Training.__init__, []

    def starting(training: Training, *given: object) -> None:
        assert [weights() for weights in made] == [None] * len(made)
        start(training, *given)
        made.append(weakref.ref(training.model.synthesis[0].weight))

    monkeypatch.setattr(Training, "__init__", starting)
    flags = [f"--data={data}", f"--out={tmp_path}", "--steps=2", "--batch=1", "--lr=1e-3"]
    assert main(["demo", *flags, f"--factor={1 / 24}", "--threads=1"]) == 0
    assert len(made) == 3
