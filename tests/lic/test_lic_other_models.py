"""Models of other packages work, or are refused in one line before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.lic.__main__ import main
from bench.lic.data import load
from bench.lic.models import build
from bench.lic.training import Config, Processes, Training, load_model
from bench.lic.training.trial import try_once

HERE = "lic.other_models"


def options(data: Path, out: Path, name: str) -> list[str]:
    flags = ["--crop=32", "--batch=2", "--steps=4", "--optimizer=adam", "--threads=1", "--factor=1"]
    return ["train", f"--data={data}", f"--out={out}", f"--model={HERE}:{name}", *flags]


@pytest.mark.parametrize(
    "name", ["Tables", "NoQuantiles", "NoAuxiliaryLoss", "ListOfLosses", "Nested", "Noted"]
)
def test_a_model_of_other_manners_trains_resumes_and_is_evaluated(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert main(options(data, straight, name)) == 0
    step = Training.step

    def stops_in_the_third(training: Training) -> object:
        if training.steps == 2:
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as here:
        here.setattr(Training, "step", stops_in_the_third)
        assert main([*options(data, halting, name), "--checkpoint-every=1"]) == 130
    assert main([*options(data, halting, name), "--resume"]) == 0
    ends = [torch.load(out / "model.pt", weights_only=True)["model"] for out in (straight, halting)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    out = tmp_path / "eval"
    assert main(["eval", str(halting), f"--data={data}", f"--out={out}"]) == 0
    assert len(json.loads((out / "eval.json").read_text())["results"][0]["images"]) == 3


def test_tables_that_grew_are_loaded(data: Path, tmp_path: Path) -> None:
    assert main(options(data, tmp_path, "Tables")) == 0
    model, _ = load_model(tmp_path)
    bottleneck = model.net.entropy_bottleneck
    assert torch.equal(bottleneck._quantized_cdf, torch.ones(4, 7, dtype=torch.int32))
    assert torch.equal(bottleneck._offset, torch.full((4,), 3))


def test_parameters_of_other_shapes_are_still_refused() -> None:
    model = build(f"{HERE}:Tables")
    state = {**model.state_dict(), "net.never_used": torch.zeros(4)}
    with pytest.raises(RuntimeError, match=r"size mismatch for net\.never_used"):
        model.load_state_dict(state)


def test_each_of_several_auxiliary_losses_counts() -> None:
    torch.manual_seed(0)
    losses = build(f"{HERE}:ListOfLosses")
    assert losses.aux_loss().item() == 2 * losses.net.entropy_bottleneck.loss().item()
    assert not build(f"{HERE}:NoAuxiliaryLoss").aux_loss().requires_grad


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Larger", "makes an x_hat of (2, 3, 40, 40) from images of (2, 3, 32, 32); crop it"),
        ("double", "has parameters of torch.float64"),
        ("Pair", "fails on 2 x 32 x 32 random pixels (TypeError"),
        ("NothingCoded", "has no likelihoods"),
        ("Named", "has a str among its likelihoods"),
        ("TextualLoss", "has an aux_loss() of str"),
        ("Frozen", "depends on no parameter"),
        ("BrokenEvaluation", "(RuntimeError: call update() first)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    name: str, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(options(data, out, name)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"python -m bench.lic: --model {HERE}:{name} ")
    assert said in last
    assert not out.exists()


class InTurn(Processes):
    """Two processes, of which the first one is done before the other begins."""

    said: list[Any]

    def __init__(self, rank: int) -> None:
        super().__init__(rank, 2)

    def from_first(self, value: Any) -> Any:
        if self.first:
            self.said.append(value)
            return value
        return self.said.pop(0)


def test_tables_of_an_evaluation_are_those_of_all_processes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next step of several processes fails, which have buffers of one size."""
    monkeypatch.setattr(InTurn, "said", [], raising=False)
    found = []
    for rank in (0, 1):
        training = Training(config("Tables"), load(str(data), 32, 16))
        training.processes = InTurn(rank)
        training.evaluate()
        found.append(training.model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert found[1]["net.entropy_bottleneck._quantized_cdf"].shape == (4, 7)
    assert found[1]["net.entropy_bottleneck._offset"].tolist() == [3] * 4


def config(name: str) -> Config:
    return Config(
        model=f"{HERE}:{name}", optimizer="adam", lr=1e-3, lam=0.013, steps=1, batch=2, crop=32
    )


def test_a_trial_leaves_no_trace(data: Path) -> None:
    torch.manual_seed(0)
    model = build(f"{HERE}:Noted")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noise = torch.get_rng_state()
    try_once(model, config("Noted"), "cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), noise)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert Training(config("Noted"), load(str(data), 32, 16)).steps == 0
