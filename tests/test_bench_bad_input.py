"""What cannot be used is told in one line with exit code 2, before anything is measured."""

from __future__ import annotations

import json
import sys

import pytest

from bench.__main__ import main as bench
from bench.gates import ratios
from bench.peers import beside

pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = """
import torch

class Refuses(torch.optim.SGD):
    def __init__(self, params, lr=1.0):
        raise TypeError("takes no such parameters\\nat all")

def raises(device):
    raise KeyError("weights")

def nothing(device):
    return None

def loss_raises(device):
    model = torch.nn.Linear(2, 2)
    return model, lambda: {}["batch"]
"""
VECTORS = {"model": "vectors", "params": [{"name": "b", "shape": [6]}]}
EMPTY = {"model": "empty", "params": []}
AUXILIARY = {"model": "aux", "params": [{"name": "b", "shape": [6], "aux": True}]}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "users_module"
    sys.modules.pop("users_module", None)


@pytest.fixture
def refused(capsys):
    def of(*arguments):
        assert bench(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    return of


@pytest.mark.parametrize("content", [EMPTY, AUXILIARY], ids=["empty", "auxiliary"])
@pytest.mark.parametrize("command", ["launches", "plan", "refresh", "step", "kernels"])
def test_a_model_without_parameters(command, content, inventory_file, refused):
    assert "no parameter of it is stepped" in refused(command, "--shapes", inventory_file(content))


def test_a_refresh_of_a_model_without_factors(inventory_file, refused):
    error = refused("refresh", "--op", "eager", "--shapes", inventory_file(VECTORS))
    assert "no parameter of vectors has a factor" in error


def test_a_plan_under_options_that_soap_refuses(refused):
    assert "-3" in refused("plan", "--shapes", "elic", "--max-precond-dim", "-3")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "users_module:raises raised KeyError: 'weights'"),
        ("nothing", "users_module:nothing raised TypeError: cannot unpack"),
        ("loss_raises", "the loss of users_module:loss_raises raised KeyError: 'batch'"),
    ],
)
def test_a_model_of_the_users_that_raises(module, function, message, refused):
    assert message in refused("train", "--model", f"{module}:{function}")


@pytest.mark.parametrize("option", ["--batch", "--crop", "--width"])
def test_options_that_a_model_of_the_users_would_not_hear_of(module, option, refused):
    error = refused("train", "--model", f"{module}:loss_raises", option, "2")
    assert f"{option}: {module}:loss_raises makes its own batch" in error


def test_a_width_of_the_demo_that_is_no_number_of_channels(refused):
    assert "--width 0.5: of the demo it is a number of channels" in refused(
        "train", "--width", "0.5"
    )


@pytest.mark.parametrize("command", ["roof", "step", "train", "refresh", "plan"])
def test_a_result_that_cannot_be_written(command, tmp_path, refused):
    more = ["--shapes", "elic"] if command == "plan" else []
    target = tmp_path / ("x" * 300)
    assert "File name too long; name another file" in refused(command, *more, "--json", str(target))


def test_looking_whether_a_result_can_be_written_leaves_what_is_there(tmp_path, refused):
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    for target in (kept, tmp_path / "new.json"):
        refused("train", "--width", "0.5", "--json", str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert kept.read_text() == "kept"


@pytest.mark.parametrize(
    "entry", [{}, 3, {"command": [], "status": 1}, {"command": 1, "status": ""}]
)
def test_an_entry_of_a_ledger_that_is_none(tmp_path, entry, refused):
    (tmp_path / "parts.json").write_text(json.dumps({"parts": {"roof": entry}}))
    assert "is damaged: remove it" in refused("device", "--rehearse", "--out", str(tmp_path))


def test_an_unknown_backend_is_found_before_roofs_are_measured(monkeypatch, refused):
    monkeypatch.setattr("bench.commands.kernels.measure", lambda _: pytest.fail("measured"))
    options = ("--of", "operators", "--backend", "magic", "--shapes", "hyperprior")
    assert "backend='magic' is not one of" in refused("kernels", *options)


def test_a_gate_without_the_record_of_peers(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(ratios, "STEP", tmp_path)
    assert "hyperprior_cpu.json is not there" in refused("gate", "--only", "peers")


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ("torch.optim:Optimizer", "TypeError: "),
        ("torch.optim:Muon", "ValueError: Muon only supports 2D parameters"),
        ("users_module:Refuses", "TypeError: takes no such parameters"),
    ],
)
def test_a_peer_that_cannot_be_made_has_failed_and_the_others_go_on(
    module, tmp_path, monkeypatch, inventory_file, peer, message
):
    monkeypatch.setattr(beside, "sgemm_gflops", lambda _: 50.0)
    monkeypatch.setattr(beside, "peak_bytes", lambda *_: 1000)
    shapes = inventory_file({"model": "m", "params": [{"name": "w", "shape": [4, 2, 2]}]})
    target = tmp_path / "result.json"
    command = ["step", "--shapes", shapes, "--peers", f"{peer},adamw", "--json", str(target)]
    assert bench(command) == 0
    ours, failed, adamw = json.loads(target.read_text())["results"]
    assert failed["failed"].startswith(message)
    assert failed["peak_bytes"] is None
    assert ours["mean_ms"] > 0
    assert adamw["mean_ms"] > 0


def test_a_peer_of_training_that_cannot_be_made(module, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.peers.train_memory.peak_bytes", lambda *_: None)
    small = ["--batch", "1", "--width", "4", "--periods", "1", "--precondition-frequency", "1"]
    target = tmp_path / "result.json"
    assert bench(["train", *small, "--peers", "torch.optim:Muon", "--json", str(target)]) == 0
    *_, failed = json.loads(target.read_text())["results"]
    assert failed["failed"].startswith("ValueError: Muon only supports 2D")
