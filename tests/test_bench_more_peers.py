"""Peers beyond the first four: any class by its name, time limits, switches that all share."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest
import torch

from bench import shapes
from bench.__main__ import main as bench
from bench.peers import beside, optimizers, peak
from bench.peers.interleaved import Runner, take_turns
from bench.peers.limit import TookTooLong, time_limit

TINY = {"model": "tiny", "params": [{"name": "w", "shape": [6, 4]}, {"name": "b", "shape": [6]}]}


@pytest.fixture
def tiny(inventory_file):
    return inventory_file(TINY)


@pytest.fixture
def rows_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "peak_bytes", lambda *_: 1000)
    monkeypatch.setattr(beside, "sgemm_gflops", lambda _: 50.0)

    def rows(*options):
        target = tmp_path / "result.json"
        assert bench(["step", "--shapes", tiny, "--json", str(target), *options]) == 0
        return json.loads(target.read_text())["results"]

    return rows


def test_any_class_takes_part_with_our_options_as_far_as_it_has_them(rows_of):
    ours, radam, public = rows_of("--peers", "torch.optim:RAdam,pytorch_optimizer:SOAP")
    assert ours["version"] is not None
    assert radam["note"].startswith("set as ours: lr, betas, eps, weight_decay; everything else")
    assert radam["package"] == "torch"
    assert torch.__version__.startswith(radam["version"].partition("+")[0])
    assert radam["refresh_ms"] is None
    assert "max_precondition_dim" in public["note"]
    assert public["package"] == "pytorch_optimizer"
    assert public["refresh_ms"] is None
    assert public["mean_ms"] == pytest.approx(sum(public["samples"]["mean_ms"]) / 10)


class RefreshesElsewhere(torch.optim.SGD):
    """Sleeps at its calls 19 and 29, where one that counts as we do would refresh at 20 and 30."""

    def __init__(self, params, lr, precondition_frequency):
        super().__init__(params, lr=lr)
        self.calls = 0

    def step(self, closure=None):
        time.sleep(0.05 if self.calls in (19, 29) else 0.0)
        self.calls += 1


def test_a_refresh_counts_wherever_it_falls(rows_of, monkeypatch):
    monkeypatch.setattr("bench.peers.foreign.distribution", lambda cls: "made up")
    _, found = rows_of("--peers", f"{__name__}:RefreshesElsewhere", "--periods", "2")
    assert found["mean_ms"] >= 2 * 50 / 20
    assert found["plain_ms"] < 5


def test_adam_and_adamw_of_torch_by_their_implementations(rows_of):
    _, *others = rows_of("--peers", "adam,adamw,adamw_foreach")
    assert [row["name"] for row in others] == ["adam", "adamw", "adamw_foreach"]
    assert all(row["p99_ms"] >= row["plain_ms"] >= 0 for row in others)
    groups = [
        optimizers.build(name, shapes.Inventory("m", (shapes.Entry("w", (2, 2), True),))
                         .parameters(), 10, None).param_groups[0]
        for name in ("adamw", "adamw_foreach")
    ]  # fmt: skip
    assert [group["fused"] for group in groups] == [True, None]
    assert [group["foreach"] for group in groups] == [None, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim:Nothing", "has no attribute 'Nothing'"),
        ("no.such.module:Class", "No module named 'no'"),
        ("torch:Tensor", "is no class of torch.optim.Optimizer"),
        ("torch.nn:", "cannot take 'torch.nn:'"),
    ],
)
def test_a_name_of_no_optimizer_is_one_line_and_exit_code_2(tiny, name, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench(["step", "--shapes", tiny, "--peers", name])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_call_that_takes_too_long_fails_and_the_others_go_on(rows_of, monkeypatch):
    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(20)

    slow = optimizers.Peer(lambda params, frequency: Slow(params))
    monkeypatch.setitem(optimizers.PEERS, "heavyball_compiled", slow)
    start = time.perf_counter()
    _, failed, adamw = rows_of("--peers", "heavyball_compiled,adamw", "--time-limit", "0.2")
    assert failed["failed"] == "TookTooLong: took longer than 0.2 s"
    assert adamw["mean_ms"] > 0
    assert time.perf_counter() - start < 10


def test_peers_that_sleep_cost_their_own_numbers_and_not_ours(rows_of, monkeypatch):
    class Sleeps(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.2)

    monkeypatch.setitem(
        optimizers.PEERS, "heavyball", optimizers.Peer(lambda params, frequency: Sleeps(params))
    )
    asked = []
    monkeypatch.setattr(beside, "peak_bytes", lambda name, *_: asked.append(name) or 1000)
    start = time.perf_counter()
    ours, sleeps, adamw = rows_of("--peers", "heavyball,adamw", "--budget", "0.5")
    assert time.perf_counter() - start < 5
    assert sleeps["failed"].startswith(("stopped at ", "TookTooLong: took longer than 0."))
    assert "the budget of 0.5 s was over" in adamw["failed"]
    assert (len(ours["samples"]["plain_ms"]), ours["peak_bytes"]) == (9, 1000)
    assert asked == ["soap_fast"]  # after the times, and of those that have some


def test_a_limit_that_is_kept_leaves_no_alarm():
    with time_limit(0.1):
        pass
    time.sleep(0.15)  # an alarm left behind would raise here
    with pytest.raises(TookTooLong), time_limit(0.05):
        time.sleep(1)


def test_heavyballs_switch_is_set_for_its_calls_only(tiny, monkeypatch):
    """Both of its entries in one run: one compiles, the other does not."""
    seen = []
    fake = types.ModuleType("heavyball")
    fake.utils = types.SimpleNamespace(compile_mode="its default")

    class SOAP(torch.optim.SGD):
        _is_preconditioning = False

        def __init__(self, params, **options):
            super().__init__(params, lr=options["lr"])

        def step(self, closure=None):
            seen.append(fake.utils.compile_mode)

    fake.SOAP = SOAP
    monkeypatch.setitem(sys.modules, "heavyball", fake)
    inventory, runners = shapes.load(tiny), []
    for name in ("heavyball", "heavyball_compiled"):
        params = inventory.parameters()
        runners.append(Runner(name, params, optimizers.build(name, params, 2, None)))
    take_turns(runners, inventory, "cpu", frequency=2, periods=1)
    in_turns = [None, "its default", "its default", None]
    assert seen == [*in_turns, *in_turns, None, "its default"]
    assert fake.utils.compile_mode == "its default"


def test_heavyballs_own_refreshes_are_told_apart(tiny):
    """The real package: its calls step, and it says by itself which of them refreshed."""
    pytest.importorskip("heavyball")
    inventory = shapes.load(tiny)
    params = inventory.parameters()
    start = [param.detach().clone() for param in params]
    runner = Runner("heavyball", params, optimizers.build("heavyball", params, 3, None))
    take_turns([runner], inventory, "cpu", frequency=3, periods=2)
    assert runner.failed is None
    times = runner.times
    assert (len(times.first), len(times.plain), len(times.refresh)) == (1, 4, 2)
    assert all(not torch.equal(*pair) for pair in zip(params, start, strict=True))


def test_the_process_that_measures_memory_has_a_limit(capsys):
    assert peak.in_a_process("bench.peers.memory", "adamw", ["adamw"], 0.01) is None
    assert "no peak memory of adamw: took longer than 0.01 s" in capsys.readouterr().err
