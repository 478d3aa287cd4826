"""Command lines of `python -m bench`: help, options, and what cannot be used, told in one line."""

from __future__ import annotations

import os
import sys
import threading
import types
from unittest.mock import Mock

import pytest
import torch

from bench import command, envelope
from bench.__main__ import COMMANDS
from bench.__main__ import main as bench

pytestmark = pytest.mark.usefixtures("one_thread")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


@pytest.fixture(autouse=True)
def users_module(monkeypatch):
    users = types.ModuleType("users")
    users.number = 3
    users.raises = lambda device: {}["weights"]
    users.nothing = lambda device: None
    users.loss_raises = lambda device: (torch.nn.Linear(2, 2), lambda: {}["batch"])
    users.no_parameters = lambda device: (torch.nn.ReLU(), lambda: torch.zeros(()))
    monkeypatch.setitem(sys.modules, "users", users)


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


@pytest.mark.parametrize("name", ["launches", "refresh", "step", "kernels"])
def test_a_model_without_parameters_or_factors(name, inventory_file, refused):
    vector = {"name": "b", "shape": [6]}
    for params in ([], [{**vector, "aux": True}]):
        path = inventory_file({"model": "none", "params": params})
        assert "no parameter of it is stepped" in refused(name, "--shapes", path)
    path = inventory_file({"model": "vectors", "params": [vector]})
    error = refused("refresh", "--op", "eager", "--shapes", path)
    assert "no parameter of vectors has a factor" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --model vgg", "no model 'vgg': take demo, elic, tcm_64, tcm_128, lalic, dcae, hyp"),
        ("train --model nowhere:model", "No module named 'nowhere'"),
        ("train --model users:number", "cannot be called"),
        ("train --model users:other", "has no attribute 'other'"),
        ("train --model users:raises", "users:raises raised KeyError: 'weights'"),
        ("train --model users:nothing", "users:nothing raised TypeError: cannot unpack"),
        ("train --model users:no_parameters", "optimizer got an empty parameter list"),
        ("train --model users:loss_raises", "the loss of users:loss_raises raised KeyError"),
        ("train --model users:raises --batch 2", "--batch: users:raises makes its own batch"),
        ("train --model users:raises --crop 2", "--crop: users:raises makes its own batch"),
        ("train --model users:raises --width 2", "--width: users:raises makes its own batch"),
        ("train --width 0.5", "--width 0.5: of the demo it is a number of channels"),
        ("step --peers adamw,lion", "no peer 'lion': take pytorch_optimizer, heavyball"),
        ("step --peers torch.optim:No", "has no attribute 'No'"),
        ("step --peers torch:Tensor", "is no class of torch.optim.Optimizer"),
        ("step --peers soap_fast:SOAP?lr=fast", "write options as ?name=number"),
        ("step --graphed --peers adamw", "make one after the other"),
        ("step --graphed --device cpu", "--graphed replays CUDA graphs"),
        ("refresh --ranks 4096 --op eager", "--ranks 4096: each needs a core"),
        ("device --only rof", "invalid choice: 'rof'"),
        ("roof --device cuda:99", "cuda:99 cannot be used here"),
        ("kernels --of operators --backend magic", "backend='magic' is not one of"),
        ("report nowhere.json --out .", "nowhere.json: No such file or directory"),
        (f"report {__file__} --out .", "is nothing that --json has written"),
    ],
)
def test_what_cannot_be_used(arguments, message, monkeypatch, refused):
    monkeypatch.setattr("bench.kernels.measure", lambda _: pytest.fail("measured"))
    assert message in refused(*arguments.split())


@pytest.mark.skipif(CORES < 2, reason="gives each of two processes a core, as Linux lets it")
def test_processes_share_a_refresh(inventory_file, bench_rows):
    shapes = ({"name": "w", "shape": [24, 18]}, {"name": "v", "shape": [9, 24]})
    few = inventory_file({"model": "few", "params": shapes})
    options = ("--ranks", "2", "--shapes", few, "--op", "eager", "--repeats", "2")
    (row,) = bench_rows("refresh", *options)
    assert (row["ranks"], row["factors"], row["shapes"]) == (2, 4, "few")
    bases = 4 * (24**2 + 18**2 + 9**2 + 24**2)
    assert 2 * bases < 1e6 * row["megabytes"] < 3 * bases
    alone, shared = (torch.tensor(row["samples"][name]) for name in ("alone", "shared"))
    assert alone.shape == shared.shape == (2, 2)
    ratio, cpu_ratio = (shared.mean(0) / alone.mean(0)).tolist()  # of two the mean is the median
    assert row["ratio"] == row["shared_ms"] / row["alone_ms"] == pytest.approx(ratio)
    assert row["cpu_ratio"] == pytest.approx(cpu_ratio)


def test_a_result_that_cannot_be_written(tmp_path, refused):
    for name in ("roof", "step", "train", "refresh", "launches"):
        error = refused(name, "--json", str(tmp_path / ("x" * 300)))
        assert "File name too long; name another file" in error
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    for target in (kept, tmp_path / "new.json"):
        command.check_target(str(target))
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(kept, "kept")]


def test_a_death_while_writing_leaves_the_earlier_result(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    envelope.write(str(target), [{"a": 1}], "step")
    monkeypatch.setattr("os.replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        envelope.write(str(target), [{"a": 2}], "step")
    kept = envelope.read(str(target))
    assert (kept.command, kept.rows) == ("step", [{"a": 1}])
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
def test_a_link_stays_and_a_pipe_is_written(tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target.json")
    os.mkfifo(pipe)
    for path in (link, pipe):
        writer = threading.Thread(target=envelope.write, args=(str(path), [{"a": 1}]))
        writer.start()
        writer.join(timeout=0 if path is pipe else None)
        assert envelope.read(str(path)).rows == [{"a": 1}]
    assert link.is_symlink()


def test_tables_are_markdown_and_cells_cannot_end_them():
    rows = [["a|b", 1234.5], [None, 2]]
    expected = "| name | x |\n| --- | ---: |\n| a\\|b | 1234 |\n| - | 2 |\n"
    assert command.table(["name", "x"], rows) == expected
    assert command.table(["name", "x"], rows, aligned=True).splitlines()[2] == "| a\\|b | 1234 |"
