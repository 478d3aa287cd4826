"""`python -m bench step --peers`: who is compared, under what conditions, and what is told."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import shapes
from bench.__main__ import main as bench
from bench.measuring.calls import Times
from bench.peers import beside, memory, optimizers
from bench.peers.interleaved import Runner, take_turns
from bench.peers.peak import in_a_process
from bench.roofline.costs import costs

# Every unfolding has as many columns as rows, so that all factors have full rank from the start
# and the steps of two implementations are the same.
TINY = {
    "model": "tiny",
    "params": [
        {"name": "kernel", "shape": [6, 4, 3, 3]},
        {"name": "pointwise", "shape": [4, 4, 1, 1]},
        {"name": "table", "shape": [2, 5, 5], "contiguous": False},
        {"name": "bias", "shape": [6]},
    ],
}
TIMES = ("first_ms", "plain_ms", "refresh_ms", "mean_ms")


@pytest.fixture
def tiny(inventory_file):
    return inventory_file(TINY)


@pytest.fixture
def quick(monkeypatch):
    """What is tested on its own below, and heavyball as if it were not installed."""
    monkeypatch.setattr(beside, "peak_bytes", lambda *_: 1000)
    monkeypatch.setattr(beside, "sgemm_gflops", lambda _: 50.0)
    monkeypatch.setitem(sys.modules, "heavyball", None)


def rows_of(tiny, tmp_path, peers, *more):
    target = tmp_path / "result.json"
    arguments = ["step", "--shapes", tiny, "--peers", peers, "--json", str(target), *more]
    assert bench(arguments) == 0
    return json.loads(target.read_text())["results"]


class TestRows:
    def test_one_per_optimizer_ours_first(self, tiny, tmp_path, quick, capsys):
        peers = "pytorch_optimizer,heavyball,adamw,oracle"
        rows = rows_of(tiny, tmp_path, peers)
        assert [row["name"] for row in rows] == ["soap_fast", *peers.split(",")]
        ours, public, absent, adamw, oracle = rows
        assert absent == {"name": "heavyball", "missing": "pip install heavyball==3.2.1"}
        (line,) = (x for x in capsys.readouterr().err.splitlines() if "missing" in x)
        assert "heavyball" in line
        for row in (ours, public, adamw, oracle):
            assert row["peak_bytes"] == 1000
            assert row["sgemm_gflops"] == 50
            assert row["parameters"] == 216 + 16 + 50 + 6
            assert row["speedup"] == row["mean_ms"] / ours["mean_ms"]
        for row in (ours, public, oracle):
            assert all(row[key] > 0 for key in TIMES)
            assert row["mean_ms"] == pytest.approx((9 * row["plain_ms"] + row["refresh_ms"]) / 10)
            assert row["state_ratio"] > 2
        assert adamw["refresh_ms"] is None
        assert adamw["mean_ms"] == adamw["plain_ms"]
        assert [row["gemm_share"] for row in (public, adamw, oracle)] == [None] * 3
        # Modes, joint or one by one: 6x4, 3 and 3; 4x4; 2, 5 and 5. 5 d + 1 for each and element.
        products = 216 * (5 * (24 + 3 + 3) + 3) + 16 * (5 * 16 + 1) + 50 * (5 * (2 + 5 + 5) + 3)
        assert ours["gemm_share"] == pytest.approx(products / 50e9 / (ours["plain_ms"] / 1e3))

    def test_a_peer_is_named_twice_and_the_backend_is_chosen(self, tiny, tmp_path, quick):
        more = ("--backend", "eager", "--precondition-frequency", "1")
        ours, adamw = rows_of(tiny, tmp_path, "adamw, adamw", *more)
        assert (ours["backend"], adamw["backend"]) == ("eager", None)
        assert ours["plain_ms"] is None
        assert ours["gemm_share"] is None

    def test_one_that_cannot_step_is_reported_and_the_others_go_on(
        self, tiny, tmp_path, quick, monkeypatch
    ):
        class Broken(torch.optim.SGD):
            def step(self, closure=None):
                raise RuntimeError("no such kernel\nfor this device")

        broken = optimizers.Peer(lambda params, frequency: Broken(params))
        monkeypatch.setitem(optimizers.PEERS, "heavyball", broken)
        _, failed, adamw = rows_of(tiny, tmp_path, "heavyball,adamw")
        assert failed["failed"] == "RuntimeError: no such kernel"
        assert adamw["mean_ms"] > 0

    def test_unknown_peers_are_one_line_and_exit_code_2(self, tiny, capsys):
        with pytest.raises(SystemExit) as stopped:
            bench(["step", "--shapes", tiny, "--peers", "adamw,lion"])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert "no peer 'lion': take pytorch_optimizer, heavyball, adamw, oracle" in error
        assert error.count("\n") == 1

    def test_an_unknown_backend_is_refused(self, tiny, quick, capsys):
        options = ["--peers", "adamw", "--backend", "magic"]
        assert bench(["step", "--shapes", tiny, *options]) == 2
        assert "backend='magic' is not one of" in capsys.readouterr().err


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients it is given, then spoils and drops them, as an optimizer may."""

    def __init__(self, params, name, log):
        super().__init__(params, {})
        self.name, self.log = name, log

    @torch.no_grad()
    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        self.log.append((self.name, [p.grad.clone() for p in params]))
        for p in params:
            assert p.grad.stride() == p.stride()
            p.grad.fill_(float("nan"))
            p.add_(1)
            p.grad = None


def test_all_take_turns_on_the_same_gradients(tiny):
    inventory, log, names = shapes.load(tiny), [], ["soap_fast", "oracle", "adamw"]
    runners = []
    for name in names:
        params = inventory.parameters()
        runners.append(Runner(name, params, Recorder(params, name, log)))
    take_turns(runners, inventory, "cpu", frequency=3, periods=2)
    order = [name for name, _ in log]
    calls = range(1 + 3 * 3)  # the first, a period that is not timed, two that are
    assert order == [names[(call + place) % 3] for call in calls for place in range(3)]
    for call in calls:
        first, *others = (grads for _, grads in log[3 * call : 3 * call + 3])
        for grads in others:
            assert all(map(torch.equal, first, grads))
        if call:
            assert not torch.equal(first[0], log[3 * call - 1][1][0])
    ours, _, adamw = (runner.times for runner in runners)
    assert [len(ours.first), len(ours.plain), len(ours.refresh)] == [1, 4, 2]
    assert [len(adamw.first), len(adamw.plain), len(adamw.refresh)] == [1, 6, 0]
    start = inventory.parameters()
    for runner in runners:
        for param, before in zip(runner.params, start, strict=True):
            torch.testing.assert_close(param.detach(), before.detach() + len(calls))


@pytest.mark.parametrize("peer", ["oracle", "pytorch_optimizer"])
def test_peers_that_claim_the_same_steps_take_them(tiny, peer):
    inventory, frequency = shapes.load(tiny), 5
    start, ours, theirs = (inventory.parameters() for _ in range(3))
    pair = [
        (ours, optimizers.build("soap_fast", ours, frequency, "eager")),
        (theirs, optimizers.build(peer, theirs, frequency, None)),
    ]
    for call in range(12):
        for params, optimizer in pair:
            inventory.set_gradients(params, seed=1 + call)
            optimizer.step()
        for mine, other, before in zip(ours, theirs, start, strict=True):
            assert (mine - other).norm() <= 1e-3 * (mine - before).norm()
    assert all(not torch.equal(mine, before) for mine, before in zip(ours, start, strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "least", "most"), [("adamw", 2, 2), ("soap_fast", 4, 16)])
def test_peak_memory_is_state_and_what_a_step_needs_beside_it(inventory_file, name, least, most):
    """AdamW has its moments and nothing else; SOAP also new moments before they replace the old."""
    path = inventory_file({"model": "m", "params": [{"name": "w", "shape": [96, 96, 512]}]})
    peak, size = memory.peak_bytes(name, path, "cpu", None), 4 * 96 * 96 * 512
    assert least * size - 2**20 <= peak <= most * size + 2**20


def test_peak_memory_that_cannot_be_had_is_said(capsys):
    """By a module that ends with an error at once, where ours would load torch before."""
    assert in_a_process("json.tool", "adamw", ["gone.json"], None) is None
    assert "no peak memory of adamw: " in capsys.readouterr().err


def test_rate_of_products_is_measured(monkeypatch):
    monkeypatch.setitem(
        beside.DEFAULT_SIZES, "cpu", beside.DEFAULT_SIZES["cpu"]._replace(product=64)
    )
    assert beside.sgemm_gflops("cpu") > 0


def test_flops_of_modes_without_a_factor_are_none():
    assert costs([(7,), (1, 1), ()], beside.PLAN)["soap_fast::step_"].flops == 0


def test_times_of_calls_that_did_not_occur_are_none():
    times = Times(first=[1.0], plain=[2.0, 4.0])
    assert times.summary(10) == {
        "first_ms": 1.0,
        "plain_ms": 3.0,
        "refresh_ms": None,
        "mean_ms": 3.0,
    }
