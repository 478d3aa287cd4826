"""Command lines of `python -m bench`: help, options, and what cannot be used, told in one line."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from bench import command, envelope
from bench.__main__ import COMMANDS
from bench.__main__ import main as bench
from bench.command import table

pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = """
import torch

def raises(device):
    raise KeyError("weights")

def nothing(device):
    return None

def loss_raises(device):
    model = torch.nn.Linear(2, 2)
    return model, lambda: {}["batch"]

def no_parameters(device):
    return torch.nn.ReLU(), lambda: torch.zeros(())

number = 3
"""
VECTORS = {"model": "vectors", "params": [{"name": "b", "shape": [6]}]}
EMPTY = {"model": "empty", "params": []}
AUXILIARY = {"model": "aux", "params": [{"name": "b", "shape": [6], "aux": True}]}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "users_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "users_module"
    sys.modules.pop("users_module", None)


@pytest.fixture
def refused(capsys):
    """The one line of a refusal with exit code 2."""

    def of(*arguments):
        try:
            code = bench(list(arguments))
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    return of


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"`{name}`: " in text
    assert "--json" in text or name == "readme"


@pytest.mark.parametrize("content", [EMPTY, AUXILIARY], ids=["empty", "auxiliary"])
@pytest.mark.parametrize("name", ["launches", "refresh", "step", "kernels"])
def test_a_model_without_parameters(name, content, inventory_file, refused):
    assert "no parameter of it is stepped" in refused(name, "--shapes", inventory_file(content))


def test_a_refresh_of_a_model_without_factors(inventory_file, refused):
    error = refused("refresh", "--op", "eager", "--shapes", inventory_file(VECTORS))
    assert "no parameter of vectors has a factor" in error


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vgg", "no model 'vgg': take demo, elic, tcm_64, tcm_128, lalic, dcae, hyperprior, or"),
        ("nowhere:model", "No module named 'nowhere'"),
        ("users_module:number", "cannot be called"),
        ("users_module:other", "has no attribute 'other'"),
        ("users_module:raises", "users_module:raises raised KeyError: 'weights'"),
        ("users_module:nothing", "users_module:nothing raised TypeError: cannot unpack"),
        ("users_module:no_parameters", "optimizer got an empty parameter list"),
        ("users_module:loss_raises", "the loss of users_module:loss_raises raised KeyError"),
    ],
)
def test_a_model_that_cannot_be_trained(module, model, message, refused):
    assert message in refused("train", "--model", model)


@pytest.mark.parametrize("option", ["--batch", "--crop", "--width"])
def test_options_that_a_model_of_the_users_would_not_hear_of(module, option, refused):
    error = refused("train", "--model", f"{module}:loss_raises", option, "2")
    assert f"{option}: {module}:loss_raises makes its own batch" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--width", "0.5"], "--width 0.5: of the demo it is a number of channels"),
        (["step", "--peers", "adamw,lion"], "no peer 'lion': take pytorch_optimizer, heavyball"),
        (["step", "--peers", "torch.optim:No"], "has no attribute 'No'"),
        (["step", "--peers", "torch:Tensor"], "is no class of torch.optim.Optimizer"),
        (["step", "--graphed", "--peers", "adamw"], "make one after the other"),
        (["step", "--graphed", "--device", "cpu"], "--graphed replays CUDA graphs"),
        (["roof", "--device", "cuda:99"], "cuda:99 cannot be used here"),
        (["kernels", "--roof", "nowhere.json"], "nowhere.json: No such file"),
        (["kernels", "--of", "operators", "--backend", "magic"], "backend='magic' is not one of"),
        (["report", "nowhere.json", "--out", "."], "nowhere.json: No such file or directory"),
        (["report", __file__, "--out", "."], "is not JSON"),
    ],
)
def test_options_that_cannot_be_used(arguments, message, monkeypatch, refused):
    monkeypatch.setattr("bench.kernels.measure", lambda _: pytest.fail("measured"))
    assert message in refused(*arguments)


@pytest.mark.parametrize("name", ["roof", "step", "train", "refresh", "launches"])
def test_a_result_that_cannot_be_written(name, tmp_path, refused):
    target = tmp_path / ("x" * 300)
    assert "File name too long; name another file" in refused(name, "--json", str(target))


def test_looking_whether_a_result_can_be_written_leaves_what_is_there(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    for target in (kept, tmp_path / "new.json"):
        command.check_target(str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert kept.read_text() == "kept"


class TestEnvelope:
    def written(self, path: Path) -> list[dict]:
        return json.loads(path.read_text())["results"]

    def test_a_death_while_writing_leaves_the_earlier_result(self, tmp_path, monkeypatch):
        target = tmp_path / "result.json"
        envelope.write(str(target), [{"a": 1}], "step")
        write = Path.write_text

        def die_halfway(path, text):
            write(path, text[: len(text) // 2])
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "write_text", die_halfway)
        with pytest.raises(KeyboardInterrupt):
            envelope.write(str(target), [{"a": 2}], "step")
        assert self.written(target) == [{"a": 1}]
        assert envelope.read(str(target)).command == "step"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
    def test_a_link_stays_and_a_pipe_is_written(self, tmp_path):
        link, pipe = tmp_path / "link", tmp_path / "pipe"
        link.symlink_to(tmp_path / "target.json")
        envelope.write(str(link), [{"a": 1}])
        assert link.is_symlink()
        assert self.written(link) == [{"a": 1}]
        os.mkfifo(pipe)
        writer = threading.Thread(target=envelope.write, args=(str(pipe), [{"a": 2}]))
        writer.start()
        assert self.written(pipe) == [{"a": 2}]
        writer.join()


def test_tables_are_markdown_and_cells_cannot_end_them():
    rows = [["a|b", 1234.5], [None, 2]]
    assert table(["name", "x"], rows) == (
        "| name | x |\n| --- | ---: |\n| a\\|b | 1234 |\n| - | 2 |\n"
    )
    assert table(["name", "x"], rows, aligned=True).splitlines()[2] == "| a\\|b | 1234 |"
