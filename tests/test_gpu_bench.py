"""Commands of `python -m bench` on a GPU, on small shapes: what no machine without one reaches."""

from __future__ import annotations

import pytest
import tolerances
import torch

from bench import clock, test_ops
from soap_fast import extension

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
CUDA = ("--device", "cuda")


@pytest.fixture
def results(inventory_file, bench_rows):
    params = [{"name": "w", "shape": [48, 40, 3, 3]}, {"name": "b", "shape": [48]}]
    shapes = inventory_file({"model": "small", "params": params})

    def run(command, *options, small=True):
        chosen = ("--shapes", shapes) if small else ()
        return bench_rows(command, *CUDA, *chosen, *options)

    return run


def test_roofs(results):
    rows = results("roof", "--size", "512", "--copy-mib", "16", small=False)
    values = {row["roof"]: row["value"] for row in rows}
    assert set(values) == {
        "copy", "gemm_float32", "gemm_tf32", "gemm_tf32x3", "gemm_bfloat16", "host_call",
        "launch", "graph_replay",
    }  # fmt: skip
    assert all(value > 0 for value in values.values())
    assert values["graph_replay"] < 100


def test_events_and_replays_time_the_same_work():
    x = torch.randn(2048, 2048, device="cuda")
    out = torch.empty_like(x)

    def work():
        for _ in range(20):
            torch.mm(x, x, out=out)

    events, replays = map(min, clock.samples([work, clock.captured(work)], "cuda", 10))
    assert 0.5 < events / replays < 3


def test_every_launch_has_a_time_and_a_share(results):
    rows = results("kernels", "--steps", "2")
    plain = {row["name"]: row for row in rows if row["phase"] == "plain"}
    assert 0 < plain["rotate 0"]["share"] < 1
    assert "refresh_" in {row["name"] for row in rows}


def test_operators(results):
    rows = results("kernels", "--of", "operators", "--backend", "eager", "--steps", "2")
    assert {"soap_fast.update", "soap_fast.rotate"} <= {row["name"] for row in rows}
    assert all(row["us"] > 0 for row in rows if row["name"] == "soap_fast.update")


@pytest.mark.parametrize("case", test_ops.cases(("cuda",)), ids=str)
def test_every_case_of_the_suite_runs(case):
    test_ops.prepare(case)()


def test_refreshes(results):
    cuda = (extension.build_info() or {}).get("cuda")
    (row,) = results("refresh", "--op", "native" if cuda else "eager", "--repeats", "2")
    assert row["device"] == "cuda"
    assert row["refresh_ms"] > 0


def test_steps_beside_peers_and_in_graphs(results):
    ours, adamw = results("step", "--backend", "triton", "--peers", "adamw")
    assert ours["host_ms"] <= ours["p99_ms"]
    assert adamw["peak_bytes"] >= 2 * 4 * adamw["parameters"]  # its moments
    (alone,) = results("step", "--backend", "triton")
    for row in (ours, alone):
        assert row["peak_bytes"] > adamw["peak_bytes"]
    assert alone["peak_bytes"] == pytest.approx(ours["peak_bytes"], rel=tolerances.PEAK_MEMORY)
    (graphed,) = results("step", "--graphed")
    assert graphed["plain_ms"] > 0
    assert graphed["refresh_ms"] > 0


def test_training(results):
    options = ("--periods", "1", "--batch", "1", "--width", "8", "--backend", "triton")
    adam, ours = results("train", *options, small=False)
    assert adam["peak_bytes"] > 4 * 4 * adam["parameters"]  # with gradients and moments
    assert ours["peak_ratio"] >= 1
    assert 0 < ours["share"] < 1
