"""`step` and `train`: who takes turns with whom, on what, within which limits, and what is told."""

from __future__ import annotations

import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import tolerances
import torch

from bench import clock, memory, optimizers, shapes, step, train, workloads
from bench.clock import Elapsed, Times
from bench.step import Stepped
from bench.turns import TookTooLong, take_turns, time_limit
from soap_fast import GraphedStep, __version__

pytestmark = pytest.mark.usefixtures("one_thread")
# Every unfolding has as many columns as rows, so that all factors have full rank from the start
# and the steps of two implementations are the same.
PARAMS = [
    {"name": "kernel", "shape": [6, 4, 3, 3]},
    {"name": "pointwise", "shape": [4, 4, 1, 1]},
    {"name": "table", "shape": [2, 5, 5], "contiguous": False},
    {"name": "bias", "shape": [6]},
]
TIMES = ("first_ms", "plain_ms", "refresh_ms", "mean_ms")
SMALL = ("--batch", "1", "--width", "4", "--periods", "1", "--precondition-frequency", "2")


@pytest.fixture
def tiny(inventory_file):
    return inventory_file({"model": "tiny", "params": PARAMS})


@pytest.fixture
def rows_of(tiny, bench_rows, monkeypatch):
    """Rows of a command; peaks and the machine's products are tested on their own."""
    monkeypatch.setattr(step, "sgemm_gflops", lambda _: 50.0)
    for module in (step, train):
        monkeypatch.setattr(module, "peak_bytes", lambda kind, name, *_: len(name) * 1000)

    def rows(name, *options):
        of = ("--shapes", tiny) if name == "step" else SMALL
        return bench_rows(name, *of, "--device", "cpu", *options)

    return rows


def heavyball_steps(monkeypatch, step):
    """In the place of heavyball an optimizer of this `step`."""
    cls = type("Made", (torch.optim.SGD,), {"step": step})
    made = optimizers.Peer(lambda params, frequency: cls(params))
    monkeypatch.setitem(optimizers.PEERS, "heavyball", made)


def raising(self, closure=None):
    raise RuntimeError("no such kernel\nfor this device")


def test_steps_beside_peers(rows_of, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "heavyball", None)
    names = "pytorch_optimizer,heavyball,adamw,oracle"
    rows = ours, public, missing, adamw, oracle = rows_of("step", "--peers", names)
    assert [row["name"] for row in rows] == ["soap_fast", *names.split(",")]
    assert missing["missing"] == "pip install heavyball==3.2.1"
    assert capsys.readouterr().err.count("heavyball is missing") == 1
    for row in (ours, public, adamw, oracle):
        assert row["peak_bytes"] == 1000 * len(row["name"])
        assert row["parameters"] == 216 + 16 + 50 + 6
        assert row["speedup"] == row["mean_ms"] / ours["mean_ms"]
        assert row["p99_ms"] >= row["host_ms"] > 0
    for row in (ours, public, oracle):
        assert all(row[key] > 0 for key in TIMES)
        assert row["mean_ms"] == pytest.approx((9 * row["plain_ms"] + row["refresh_ms"]) / 10)
        assert row["state_ratio"] > 2
    assert (adamw["refresh_ms"], adamw["mean_ms"]) == (None, adamw["plain_ms"])
    assert [row["gemm_share"] for row in (public, adamw, oracle)] == [None] * 3
    # Modes, joint or one by one: 6x4, 3 and 3; 4x4; 2, 5 and 5. 5 d + 1 for each and element.
    products = 216 * (5 * (24 + 3 + 3) + 3) + 16 * (5 * 16 + 1) + 50 * (5 * (2 + 5 + 5) + 3)
    assert ours["gemm_share"] == pytest.approx(products / 50e9 / (ours["plain_ms"] / 1e3))


def test_any_class_takes_part_with_our_options_as_far_as_it_has_them(rows_of):
    names = "torch.optim:RAdam,torch.optim:Muon,soap_fast:SOAP?noise_floor=0"
    ours, radam, muon, without_floor = rows_of("step", "--peers", names)
    assert (ours["version"], radam["refresh_ms"]) == (__version__, None)
    assert radam["note"].startswith("set as ours: lr, betas, eps, weight_decay; everything else")
    assert radam["mean_ms"] == pytest.approx(sum(radam["samples"]["mean_ms"]) / 10)
    assert muon["failed"].startswith("ValueError: Muon only supports 2D")
    assert without_floor["state_ratio"] == ours["state_ratio"]
    built = optimizers.build(without_floor["name"], [torch.nn.Parameter(torch.ones(2))], 7)
    assert (built.defaults["noise_floor"], built.defaults["precondition_frequency"]) == (0, 7)


def test_training_beside_adam(rows_of, monkeypatch):
    heavyball_steps(monkeypatch, raising)
    adam, ours, oracle, failed = rows_of("train", "--peers", "oracle,heavyball")
    assert [adam["name"], ours["name"], oracle["name"]] == ["adam", "soap_fast", "oracle"]
    assert adam["ratio"] == adam["peak_ratio"] == 1
    assert ours["ratio"] == ours["mean_ms"] / adam["mean_ms"]
    assert ours["peak_ratio"] == 9 / 4
    assert failed["failed"] == "RuntimeError: no such kernel"
    for row in (adam, ours, oracle):
        assert row["lower_ms"] <= row["median_ms"] <= row["upper_ms"]
        assert 0 < row["share"] == row["optimizer_ms"] / row["mean_ms"] < 1
        assert min(row["forward_ms"], row["backward_ms"]) > 0


@pytest.mark.parametrize("name", ["step", "train"])
def test_ours_is_not_excused(rows_of, monkeypatch, name):
    monkeypatch.setattr("soap_fast.SOAP.step", raising)
    with pytest.raises(RuntimeError, match="no such kernel"):
        rows_of(name)


def test_all_take_turns_on_the_same_gradients(tiny):
    """Also where an optimizer spoils and drops those that it is given, as it may."""
    inventory, frequency, periods = shapes.load(tiny), 3, 2
    log, names = [], ["soap_fast", "oracle", "adamw"]
    source = inventory.parameters()
    runners = [Stepped(name, source, inventory.parameters(), frequency, None) for name in names]

    def step(runner):
        log.append((runner.name, [p.grad.clone() for p in runner.params]))
        for p in runner.params:
            assert p.grad.stride() == p.stride()
            p.grad.fill_(float("nan"))
            p.grad = None

    for runner in runners:
        runner.build = lambda r=runner: types.SimpleNamespace(step=lambda: step(r))
    set_gradients = inventory.set_gradients
    take_turns(runners, frequency, periods, "x", lambda call: set_gradients(source, seed=1 + call))
    loading, log = log[:3], log[3:]
    assert [name for name, _ in loading] == names
    calls = range(1 + 3 * 3)  # the first, a period that is not timed, two that are
    assert [n for n, _ in log] == [names[(c + place) % 3] for c in calls for place in range(3)]
    for call in calls:
        first, *others = (grads for _, grads in log[3 * call : 3 * call + 3])
        for grads in others:
            assert all(map(torch.equal, first, grads))
        assert not call or not torch.equal(first[0], log[3 * call - 1][1][0])
    ours, _, adamw = (runner.times for runner in runners)
    assert [len(ours.first), len(ours.plain), len(ours.refresh)] == [1, 4, 2]
    assert [len(adamw.first), len(adamw.plain), len(adamw.refresh)] == [1, 6, 0]


@pytest.mark.parametrize("other", ["oracle", "pytorch_optimizer"])
def test_peers_that_claim_the_same_steps_take_them(tiny, other):
    inventory, frequency = shapes.load(tiny), 5
    start, ours, theirs = (inventory.parameters() for _ in range(3))
    pair = [
        (ours, optimizers.build("soap_fast", ours, frequency, "eager")),
        (theirs, optimizers.build(other, theirs, frequency)),
    ]
    for call in range(12):
        for params, optimizer in pair:
            inventory.set_gradients(params, seed=1 + call)
            optimizer.step()
        for mine, their, before in zip(ours, theirs, start, strict=True):
            assert (mine - their).norm() <= tolerances.PUBLIC_STEPS * (mine - before).norm()
    assert all(not torch.equal(mine, before) for mine, before in zip(ours, start, strict=True))


def test_limits_and_a_budget_cost_peers_their_numbers_and_not_ours(rows_of, monkeypatch):
    heavyball_steps(monkeypatch, lambda self, closure=None: time.sleep(20))
    start = time.perf_counter()
    _, failed, adamw = rows_of("step", "--peers", "heavyball,adamw", "--time-limit", "0.2")
    assert failed["failed"] == "TookTooLong: took longer than 0.2 s"
    assert adamw["mean_ms"] > 0
    ours, sleeps, adamw = rows_of("step", "--peers", "heavyball,adamw", "--budget", "1.5")
    assert time.perf_counter() - start < 10
    assert sleeps["failed"].startswith("TookTooLong: took longer than ")
    assert "the budget of 1.5 s was over" in adamw["failed"]
    assert len(ours["samples"]["plain_ms"]) == 9
    with time_limit(0.1):
        pass
    time.sleep(0.15)  # an alarm left behind would raise here
    with pytest.raises(TookTooLong), time_limit(0.05):
        time.sleep(1)


@pytest.mark.parametrize("name", ["step", "train"])
def test_what_compiles_is_in_no_figure_but_that_of_loading(rows_of, monkeypatch, name):
    """Each kind of call compiles at first, once for all and once for each of them."""
    now, compiled = [0.0], set()
    long, short = 1000.0, 1.0  # seconds
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    class SlowAtFirst(torch.optim.SGD):
        def __init__(self, params, frequency, backend=None):
            super().__init__(params, lr=1e-9)
            self.backend, self.calls, self.settled, self.frequency = backend, 0, set(), frequency

        def step(self, closure=None):
            kind = self.calls % self.frequency if self.calls else "first"
            news = (kind not in compiled) + (kind not in self.settled and kind != "first")
            compiled.add(kind)
            self.settled.add(kind)
            self.calls += 1
            now[0] += short + long * news

    monkeypatch.setattr(optimizers, "OUR_PEER", made := optimizers.Peer(SlowAtFirst))
    for peer in ("adamw", "adam"):
        monkeypatch.setitem(optimizers.PEERS, peer, made)
    rows = rows_of(name, "--peers", "adamw", "--periods", "2")
    for row in rows:
        assert {row[field] for field in TIMES} == {1e3 * short}
        assert all(set(v) <= {1e3 * short, 0.0} for v in row["samples"].values())
    assert rows[0]["loading_ms"] == 1e3 * (short + long)


def test_only_replays_of_both_graphs_are_timed(monkeypatch, tiny):
    """As if there were a GPU: graphs are captured at the 4th plain and the 2nd refreshing call."""
    replayed = []

    class Step(GraphedStep):
        def __call__(self):
            replayed.append(self.refreshes_next())
            self.optimizer.step()

    monkeypatch.setattr(step, "GraphedStep", Step)
    monkeypatch.setattr(step, "build", lambda *given: optimizers.build(*given[:3], "eager"))
    of_turns = {"device": "cpu", "precondition_frequency": 3, "periods": 2, "peers": ()}
    others = dict.fromkeys(("backend", "budget", "time_limit"))
    options = types.SimpleNamespace(graphed=True, **of_turns, **others)
    (row,) = step.measure(shapes.load(tiny), options)
    assert (row["name"], row["peak_bytes"]) == ("soap_fast, CUDA graphs", None)
    assert (len(row["samples"]["plain_ms"]), len(row["samples"]["refresh_ms"])) == (4, 2)
    assert replayed[-6:].count(True) == 2
    assert replayed[:-6].count(False) >= 4
    assert replayed[:-6].count(True) >= 2


def test_times_of_calls():
    times = Times(first=[1.0])
    assert times.tail() == {"host_ms": None, "p99_ms": None}
    for call in range(1, 201):
        times.add(Elapsed(float(call), 0.5), first=False, refresh=False)
    assert times.summary(10) == dict(zip(TIMES, (1.0, 100.5, None, 100.5), strict=True))
    assert times.tail() == {"host_ms": 0.5, "p99_ms": 198.0}


# Memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_on_the_cpu(inventory_file):
    """AdamW has its moments and nothing else; SOAP also new moments before they replace the old.

    Training has weights, gradients and two moments of each, activations, and little else. Each is
    in a process of its own, so all are taken at once.
    """
    path = inventory_file({"model": "m", "params": [{"name": "w", "shape": [96, 96, 512]}]})
    size, settings = 4 * 96 * 96 * 512, workloads.Settings(1, 64, 192)
    weights = 4 * sum(p.numel() for p in workloads.build("demo", "cpu", settings).params)
    expected = (
        (2 * size, 2 * size, "step", "adamw", [path, "cpu", None]),
        (4 * size, 16 * size, "step", "soap_fast", [path, "cpu", None]),
        (4 * weights, 8 * weights, "train", "adam", ["demo", "cpu", None, list(settings)]),
    )
    with ThreadPoolExecutor() as together:
        peaks = together.map(lambda row: memory.peak_bytes(*row[2:]), expected)
    for (least, most, *request), peak in zip(expected, peaks, strict=True):
        assert least - 2**20 <= peak <= most + 2**20, request


def test_peak_memory_that_cannot_be_had_is_said(capsys):
    assert memory.peak_bytes("step", "adamw", ["gone.json", "cpu", None]) is None
    assert memory.peak_bytes("step", "adamw", ["elic", "cpu", None], 0.01) is None
    assert "no peak memory of adamw: took longer than 0.03 s" in capsys.readouterr().err


def test_memory_of_each_of_two_that_take_turns_on_a_gpu(monkeypatch):
    """7 bytes are of nobody; one keeps 100 and the other 10, and both need more for a while."""
    allocated, most = iter([7, 107, 107, 117, 117, 117, 117, 122]), iter([137, 617, 167, 123])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(most))
    one, other = memory.Share("cuda"), memory.Share("cuda")
    for share in (one, other, one, other):
        with suppress(KeyError), share.turn():
            raise KeyError
    assert (one.kept, one.peak, other.kept, other.peak) == (100, 150, 15, 510)
    assert memory.Share("cpu").peak is None
