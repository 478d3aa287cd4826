"""No timed call is the first of its kind: what compiles, loads or is allocated there is no figure.

By a made-up optimizer under a made-up clock. Each place within a refresh period is a kind of its
own, as under a staggered schedule. The first call of a kind takes long, once for the process and
once for each optimizer.
"""

from __future__ import annotations

import json
import types
from contextlib import suppress
from itertools import pairwise

import pytest
import torch

from bench.__main__ import main as bench
from bench.commands import refresh, train
from bench.measuring import calls, clock, graphed, memory, profiles, sweeps
from bench.peers import beside, optimizers, train_memory
from bench.peers.interleaved import Runner, take_turns
from bench.roofline import launched, operators
from bench.shapes import Entry, Inventory
from soap_fast.backends.triton.backend import interpreted

LONG, SHORT = 1000.0, 1.0  # seconds
TINY = {"model": "tiny", "params": [{"name": "w", "shape": [6, 4]}, {"name": "b", "shape": [6]}]}


class Clock:
    """Stands still but for what optimizers take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def slow_at_first(monkeypatch):
    """A class of optimizers of which each kind of call compiles at first."""
    time, compiled = Clock(), set()
    for module in (calls, clock):
        monkeypatch.setattr(module, "time", time)

    class SlowAtFirst(torch.optim.SGD):
        def __init__(self, params, frequency=None, backend=None, **options):
            super().__init__(params, lr=1e-9)
            self.backend, self.calls, self.settled = backend, 0, set()
            self.frequency = frequency or options.get("precondition_frequency")

        def step(self, closure=None):
            kind = self.calls % self.frequency if self.calls else "first"
            news = (kind not in compiled) + (kind not in self.settled and kind != "first")
            compiled.add(kind)
            self.settled.add(kind)
            self.calls += 1
            time.now += SHORT + LONG * news

    monkeypatch.setattr(optimizers, "build_ours", SlowAtFirst)
    monkeypatch.setitem(optimizers.PEERS, "adamw", optimizers.Peer(SlowAtFirst))
    monkeypatch.setitem(optimizers.PEERS, "adam", optimizers.Peer(SlowAtFirst))
    for module in (sweeps, graphed):
        monkeypatch.setattr(module, "SOAP", SlowAtFirst)
    monkeypatch.setattr("bench.commands.step.peak_bytes", lambda *_: None)
    monkeypatch.setattr(beside, "peak_bytes", lambda *_: None)
    monkeypatch.setattr(beside, "sgemm_gflops", lambda _: 50.0)
    monkeypatch.setattr(train_memory, "peak_bytes", lambda *_: None)
    return SlowAtFirst


def rows_of(tmp_path, *command):
    target = tmp_path / "result.json"
    assert bench([*command, "--json", str(target)]) == 0
    return json.loads(target.read_text())["results"]


def of_one_second(row, number):
    """All times of a row are of calls that did nothing new; so many of them after the first."""
    ms = 1e3 * SHORT
    assert row["first_ms"] == row["plain_ms"] == row["refresh_ms"] == row["mean_ms"] == ms
    assert all(set(values) == {ms} for values in row["samples"].values())
    assert len(row["samples"]["plain_ms"]) + len(row["samples"]["refresh_ms"]) == number


def test_steps(tmp_path, inventory_file, slow_at_first):
    path = inventory_file(TINY)
    (row,) = rows_of(tmp_path, "step", "--shapes", path, "--periods", "2", "--device", "cpu")
    of_one_second(row, 20)
    assert row["p99_ms"] == row["host_ms"] == 1e3 * SHORT
    assert row["loading_ms"] == 1e3 * (SHORT + LONG)


def test_steps_beside_peers(tmp_path, inventory_file, slow_at_first):
    path, on = inventory_file(TINY), ("--device", "cpu")
    for row in rows_of(tmp_path, "step", "--shapes", path, "--peers", "adamw", *on):
        of_one_second(row, 10)
        assert row["p99_ms"] == 1e3 * SHORT


def test_training(tmp_path, slow_at_first, monkeypatch):
    small = ("--batch", "1", "--width", "4", "--periods", "2", "--precondition-frequency", "3")
    adam, ours = rows_of(tmp_path, "train", *small, "--device", "cpu")
    for row in (adam, ours):
        ms = 1e3 * SHORT
        assert row["optimizer_ms"] == row["upper_ms"] == row["mean_ms"] == row["first_ms"] == ms
        assert len(row["samples"]["median_ms"]) == len(row["samples"]["forward_ms"]) == 6
    assert adam["loading_ms"] == 1e3 * (SHORT + LONG)
    assert ours["ratio"] == 1


def test_the_first_forward_and_backward_pass_is_in_no_figure(slow_at_first):
    """Of a model in whose forward pass the clock goes on."""
    now, workloads = calls.time, []

    def workload():
        param = torch.nn.Parameter(torch.ones(2))
        workloads.append(param)

        def loss():
            now.now += LONG if len(workloads) == 1 and param.grad is None else SHORT
            return param.sum()

        return train.Workload([param], loss)

    runner = train.Trained("soap_fast", "cpu", workload)
    runner.built(lambda params: slow_at_first(params, 2))
    runner.load_by_a_step()
    workloads.append(None)  # everything is loaded
    for call in calls.sequence(2, 1):
        runner.step(call, 2)
    assert runner.passes == {"forward_ms": [1e3 * SHORT] * 2, "backward_ms": [0.0] * 2}
    assert runner.whole.later() == [2e3 * SHORT] * 2


def test_a_sweep(slow_at_first):
    settings = tuple(sweeps.Setting(f, (4, 4), frequency=f) for f in (1, 3))
    for point in sweeps.measure(sweeps.Sweep("frequency", "f", settings, 6), "cpu", "eager"):
        assert set(point.times.first) == set(point.times.later()) == {1e3 * SHORT}
        assert len(point.times.later()) == 6


def test_graphs(slow_at_first, monkeypatch):
    class Step:
        WARM_UP = 3

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __call__(self):
            self.optimizer.step()

        def refreshes_next(self):
            return self.optimizer.calls % self.optimizer.frequency == 0

    monkeypatch.setattr(graphed, "GraphedStep", Step)
    inventory = Inventory("tiny", (Entry("w", (6, 4), True),))
    row = graphed.measure(inventory, "cpu", frequency=5, periods=2)
    of_one_second(row, 10)
    assert row["loading_ms"] == 1e3 * (SHORT + LONG)


def test_a_peer_that_fails_while_loading_waits_out_the_run():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no such kernel")

    inventory = Inventory("tiny", (Entry("w", (6, 4), True),))
    params = inventory.parameters()
    runner = Runner("adamw", params, Broken(params), build=lambda: pytest.fail("made again"))
    take_turns([runner], inventory, "cpu", frequency=2, periods=1)
    assert runner.failed == "RuntimeError: no such kernel"
    assert runner.optimizer is None


KINDS = {"first", "plain", "refresh"}


@pytest.fixture
def phases(monkeypatch):
    """Phases of steppers in their order, each with whether it was profiled."""
    taken, step, profiled = [], profiles.Stepper.step, profiles.Stepper.profiled

    def stepped(self, phase):
        taken.append((id(self), phase, False))
        step(self, phase)

    def with_profile(self, phase):
        taken.append((id(self), phase, True))
        return profiled(self, phase)

    monkeypatch.setattr(profiles.Stepper, "step", stepped)
    monkeypatch.setattr(profiles.Stepper, "profiled", with_profile)
    return taken


def test_operators(phases):
    inventory = Inventory("tiny", (Entry("w", (6, 4), True),))
    rows = operators.measure(inventory, "cpu", "eager", 2)
    first = phases[0][0]
    loading = [phase for stepper, phase, profiled in phases if stepper == first]
    assert set(loading) == KINDS
    mine = [entry[1:] for entry in phases if entry[0] != first]
    timed = [("first", True), *[("plain", True)] * 2, *[("refresh", True)] * 2]
    assert mine == [timed[0], *((phase, False) for phase in profiles.UNTIMED), *timed[1:]]
    assert all(len(row["samples"]["us"]) == 2 for row in rows if row["phase"] != "first")


@pytest.mark.skipif(not interpreted(), reason="interprets kernels: set TRITON_INTERPRET=1")
def test_launches(phases, monkeypatch):
    watched = []
    taken = launched.TimingLauncher.taken

    def seen(self):
        watched.append(len(phases))
        return taken(self)

    monkeypatch.setattr(launched.TimingLauncher, "taken", seen)
    launched.measure(Inventory("tiny", (Entry("w", (6, 4), True),)), "cpu", 1)
    assert [phase for _, phase, _ in phases[: watched[0]]] == ["first", *profiles.UNTIMED]
    assert [phase for _, phase, _ in phases[watched[0] :]] == ["plain", "refresh"]


def test_every_kind_comes_before_and_every_one_after_another():
    steps = ("first", *profiles.UNTIMED, "plain", "refresh", "refresh")
    untimed = steps[: 1 + len(profiles.UNTIMED)]
    before = set(pairwise(untimed))
    timed = set(pairwise(steps[len(untimed) - 1 :]))
    assert set(untimed) == KINDS
    assert timed <= before


def test_refreshes_and_first_bases(monkeypatch):
    time = Clock()
    monkeypatch.setattr(clock, "time", time)

    def slow_at_first():
        calls = []

        def work():
            time.now += SHORT if calls else LONG
            calls.append(1)

        return work

    found = refresh.interleaved(slow_at_first(), slow_at_first(), 3, "refresh")
    assert found == [[1e3 * SHORT] * 3] * 2


class Allocator:
    """torch's counts of a GPU's memory, for a device that is not there."""

    def __init__(self, monkeypatch):
        self.held = self.most = 0
        cuda = types.SimpleNamespace(
            reset_peak_memory_stats=lambda device: setattr(self, "most", self.held),
            memory_allocated=lambda device: self.held,
            max_memory_allocated=lambda device: self.most,
        )
        monkeypatch.setattr(memory.torch, "cuda", cuda)

    def take(self, size):
        self.held += size
        self.most = max(self.most, self.held)


def test_memory_of_each_of_two_that_take_turns(monkeypatch):
    allocator = Allocator(monkeypatch)
    allocator.take(7)  # of nobody
    one, other = memory.Share("cuda"), memory.Share("cuda")
    for share, kept, passing in ((one, 100, 30), (other, 10, 500), (one, 0, 50), (other, 5, 1)):
        with share.turn():
            allocator.take(kept)
            allocator.take(passing)
            allocator.take(-passing)
    allocator.take(-7)
    assert (one.kept, one.peak) == (100, 150)
    assert (other.kept, other.peak) == (15, 510)
    with suppress(KeyError), one.turn():
        allocator.take(200)
        raise KeyError
    assert one.peak == 300


def test_memory_of_the_cpu_is_not_counted():
    share = memory.Share("cpu")
    with share.turn():
        torch.ones(10)
    assert share.peak is None


def test_an_optimizer_that_only_loads_counts_for_nobody(monkeypatch):
    """As if tensors were on a GPU: what it held is gone before its successor is made."""
    allocator, inventory = Allocator(monkeypatch), Inventory("tiny", (Entry("w", (6, 4), True),))

    class Holds(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=1.0)
            allocator.take(3)
            self.held = 3

        def step(self, closure=None):
            if self.held == 3:
                allocator.take(100)
                self.held += 100
            allocator.take(20)
            allocator.take(-20)

        def __del__(self):
            allocator.take(-self.held)

    runners = []
    for name in ("soap_fast", "adamw"):
        params = inventory.parameters()
        made = Holds
        runners.append(Runner(name, params, made(params), build=lambda p=params: Holds(p)))
    for runner in runners:
        runner.memory = memory.Share("cuda")
    take_turns(runners, inventory, "cpu", frequency=2, periods=1)
    assert [runner.memory.peak for runner in runners] == [123, 123]
