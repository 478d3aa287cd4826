"""`python -m bench train`: whole training steps of several optimizers in turns."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import workloads
from bench.__main__ import main as bench
from bench.commands import train
from bench.peers import optimizers, train_memory

pytestmark = pytest.mark.usefixtures("one_thread")
PERIOD = ("--periods", "1", "--precondition-frequency", "2")
SMALL = (*PERIOD, "--batch", "1", "--width", "4")
MODEL = """
import torch

built, starts = [], []

def tiny(device):
    model = torch.nn.Linear(4, 3).to(device)
    x = torch.randn(5, 4, device=device)
    built.append(model)
    starts.append(model.weight.detach().clone())
    return model, lambda: model(x).square().mean()

def no_parameters(device):
    return torch.nn.ReLU(), lambda: torch.zeros(())

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "users_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "users_model"
    sys.modules.pop("users_model", None)


@pytest.fixture
def peaks(monkeypatch):
    found = {"adam": 1000, "soap_fast": 1500}
    monkeypatch.setattr(train_memory, "peak_bytes", lambda name, *_: found.get(name))


def rows_of(tmp_path, *options):
    target = tmp_path / "result.json"
    assert bench(["train", *SMALL, "--json", str(target), *options]) == 0
    return json.loads(target.read_text())["results"]


def test_the_demo_beside_adam(tmp_path, peaks, capsys):
    adam, ours, oracle = rows_of(tmp_path, "--peers", "oracle")
    assert [adam["name"], ours["name"], oracle["name"]] == ["adam", "soap_fast", "oracle"]
    assert adam["ratio"] == adam["peak_ratio"] == 1
    assert ours["ratio"] == ours["mean_ms"] / adam["mean_ms"]
    assert ours["peak_ratio"] == 1.5
    assert "peak_ratio" not in oracle
    for row in (adam, ours, oracle):
        assert row["lower_ms"] <= row["median_ms"] <= row["upper_ms"]
        assert row["share"] == pytest.approx(row["optimizer_ms"] / row["mean_ms"])
        assert 0 < row["share"] < 1
        assert row["forward_ms"] > 0
        assert row["backward_ms"] > 0
    assert "share" in capsys.readouterr().out


def test_a_model_of_the_users(tmp_path, module, peaks):
    target = tmp_path / "result.json"
    command = ["train", *PERIOD, "--model", f"{module}:tiny", "--json", str(target)]
    assert bench(command) == 0
    adam, ours = json.loads(target.read_text())["results"]
    assert [ours[field] for field in ("batch", "crop", "width")] == [None] * 3
    assert adam["parameters"] == ours["parameters"] == 15
    user = sys.modules[module]
    assert len(user.built) == 2  # one for each optimizer, from the same start, and both have moved
    assert torch.equal(*user.starts)
    assert not torch.equal(user.built[0].weight, user.starts[0])
    assert not torch.equal(user.built[1].weight, user.starts[1])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vgg", "no model 'vgg': take demo, elic, tcm_64, tcm_128, lalic, dcae, hyperprior, or"),
        ("users_model:number", "cannot be called"),
        ("users_model:nothing", "has no attribute 'nothing'"),
        ("nowhere:model", "No module named 'nowhere'"),
    ],
)
def test_a_model_that_is_none_is_one_line_and_exit_code_2(module, model, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench(["train", "--model", model])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_trained_is_one_line_and_exit_code_2(module, capsys):
    assert bench(["train", "--model", f"{module}:no_parameters", *PERIOD]) == 2
    error = capsys.readouterr().err
    assert "optimizer got an empty parameter list" in error
    assert error.count("\n") == 1


def test_a_peer_that_fails_waits_out_the_run(tmp_path, peaks, monkeypatch):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no such kernel")

    broken = optimizers.Peer(lambda params, frequency: Broken(params))
    monkeypatch.setitem(optimizers.PEERS, "heavyball", broken)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    rows = rows_of(tmp_path, "--peers", "heavyball,pytorch_optimizer")
    assert rows[2]["failed"] == "RuntimeError: no such kernel"
    assert rows[3]["missing"] == "pip install pytorch_optimizer==4.1.0"
    assert rows[1]["mean_ms"] > 0


def test_ours_is_not_excused(peaks, monkeypatch):
    def broken(self, closure=None):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("soap_fast.SOAP.step", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench(["train", *SMALL])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_has_the_models_weights_in_it(module, tmp_path):
    """Weights, gradients, two moments of each, and what a step needs beside them."""
    (tmp_path / "wide_model.py").write_text(
        MODEL.replace("Linear(4, 3)", "Linear(512, 2000)").replace("(5, 4", "(5, 512")
    )
    settings = workloads.Settings(1, 64, 4)
    peak = train_memory.peak_bytes("adam", "wide_model:tiny", "cpu", None, settings, 60)
    weights = 4 * 512 * 2000
    assert 4 * weights - 2**20 <= peak <= 8 * weights + 2**22
    assert train.BASELINE == "adam"
