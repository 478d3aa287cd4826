"""Two processes that share each batch train as one does; the first alone writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tolerances
import torch
from lic.sharing import RUNS

from bench.lic.data import load
from bench.lic.models import build
from bench.lic.training import Config, Processes, Training

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks: not on Windows")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    script = Path(__file__).with_name("sharing.py")
    done = subprocess.run(
        [sys.executable, script, data, folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model.pt", weights_only=True)["model"]


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())["results"][0]


def test_gradients_of_two_processes_are_those_of_one(trained: Path) -> None:
    """All of SGD's way, which is linear in them but where a latent is rounded another way."""
    torch.manual_seed(0)
    model, factor, *_ = RUNS["torch.optim:SGD"]
    start = build(model, factor)
    one, two = (weights(trained / "torch.optim:SGD" / name) for name in ("alone", "shared"))
    ways = [
        torch.cat([(end[name] - p.detach()).flatten() for name, p in start.named_parameters()])
        for end in (one, two)
    ]
    assert (ways[0] - ways[1]).norm() < tolerances.SHARED * ways[0].norm()
    assert torch.equal(one["entropy_bottleneck.quantiles"], two["entropy_bottleneck.quantiles"])


@pytest.mark.parametrize("optimizer", RUNS)
def test_losses_of_two_processes_are_those_of_one(optimizer: str, trained: Path) -> None:
    alone, shared = trained / optimizer / "alone", trained / optimizer / "shared"
    curves = [[p["rd_loss"] for p in result(out)["curve"]] for out in (alone, shared)]
    assert curves[0] == pytest.approx(curves[1], rel=tolerances.SHARED)
    histories = [
        torch.load(out / "checkpoint.pt", weights_only=True)["training"]["history"]["losses"]
        for out in (alone, shared)
    ]
    assert histories[0].tolist() == pytest.approx(histories[1].tolist(), rel=tolerances.SHARED)


def test_a_shared_run_resumes_to_the_same_bits(trained: Path) -> None:
    straight, halted = (weights(trained / "soap_fast" / name) for name in ("shared", "halted"))
    assert all(torch.equal(straight[name], halted[name]) for name in straight)


def test_sharing_refreshes_changes_no_bit(trained: Path) -> None:
    shared, split = (weights(trained / "soap_fast" / name) for name in ("shared", "split"))
    assert all(torch.equal(shared[name], split[name]) for name in shared)


def test_sharing_the_state_changes_no_bit_and_resumes(trained: Path) -> None:
    shared, owned = (weights(trained / "soap_fast" / name) for name in ("shared", "owned"))
    assert all(torch.equal(shared[name], owned[name]) for name in shared)


def test_the_first_process_alone_speaks(trained: Path) -> None:
    said = trained / "soap_fast"
    assert "held out: R-D loss" in (said / "said.0").read_text()
    assert (said / "said.1").read_text() == ""


def test_every_process_and_step_has_its_own_noise(data: Path) -> None:
    images = load(str(data), 64, 64)
    config = Config(
        model="hyperprior",
        factor=1 / 24,
        optimizer="adam",
        lr=1e-3,
        lam=0.013,
        steps=3,
        batch=1,
        crop=64,
    )
    seeds = []
    for rank in (0, 1):
        training = Training(config, images, Processes(rank))
        for _ in range(3):
            seeds.append(training._noise_seed())
            training.history.losses.append(0.0)
    assert len(set(seeds)) == 6
