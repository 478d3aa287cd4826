"""`roof`, `kernels` and `pytest bench/`: what a machine can do, and what parts of a step take."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
import torch

from bench import clock, kernels, launches, recorded, roof, test_ops
from bench.costs import PLAN, costs
from soap_fast import extension
from soap_fast.backends.triton.backend import interpreted

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(6, 4, 3, 3), (40, 12), (6,)]
ROWS = [
    {"roof": "copy", "value": 10.0, "unit": "GB/s"},
    {"roof": "gemm_float32", "value": 100.0, "unit": "GFLOP/s"},
]


@pytest.fixture
def rows_of(bench_rows, inventory_file, monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda device: ROWS)
    params = [{"name": str(shape), "shape": list(shape)} for shape in SHAPES]
    small = inventory_file({"model": "small", "params": params})

    def rows(command, *options):
        of = ("--shapes", small) if command == "kernels" else ()
        return bench_rows(command, *of, "--device", "cpu", *options)

    return rows


class TestRoof:
    def test_a_row_for_each_roof_of_the_cpu(self, rows_of):
        rows = rows_of("roof", "--size", "64", "--copy-mib", "1", "--repeats", "3")
        assert [r["roof"] for r in rows] == ["copy", "gemm_float32", "gemm_bfloat16", "host_call"]
        for row in rows:
            best = min if row["unit"] == "us" else max
            assert 0 < row["value"] == best(row["value"], row["median"])

    def test_rates_are_amounts_over_times(self, monkeypatch):
        monkeypatch.setattr(roof, "samples", lambda *_, **__: [[4.0, 2.0, 3.0]])
        copy, gemm, _, host = roof.measure("cpu", 2**20, 100)
        assert copy["value"] == 2 * 2**20 / 2.0 / 1e9
        assert copy["median"] == 2 * 2**20 / 3.0 / 1e9
        assert gemm["value"] == 2 * 100**3 / 2.0 / 1e9
        assert host["value"] == pytest.approx(1e6 * 2.0 / roof.CALLS)
        row = {"roof": "gemm_tf32", "value": 300.0, "median": 270.0, "unit": "GFLOP/s"}
        (third,) = roof.derived([row, *ROWS])
        assert (third["roof"], third["value"], third["median"]) == ("gemm_tf32x3", 100, 90)

    def test_least_time_is_of_products_or_of_bytes(self):
        found = roof.Roofs.of_rows(ROWS)
        assert found.least_seconds(1e11, 1e9, "float32") == 1
        assert found.least_seconds(1e9, 1e11, "float32") == 10


class TestClock:
    def test_spans_in_order_and_once(self):
        log, watch = [], clock.Stopwatch("cpu", cold=True)
        assert watch(lambda: "result") == "result"
        assert [len(watch.seconds()), len(watch.seconds())] == [1, 0]
        works = [lambda: log.append("one"), lambda: log.append("other")]
        times = clock.samples(works, "cpu", 2, lambda: log.append("before"))
        assert log == ["before", "one", "before", "other"] * 3
        assert [len(seconds) for seconds in times] == [2, 2]

    def test_on_cuda_events_are_read_after_all_spans(self, monkeypatch):
        monkeypatch.setattr(torch, "cuda", cuda := Mock())
        cuda.Event.return_value.elapsed_time.side_effect = [2.0, 1.0]
        watch = clock.Stopwatch("cuda")
        assert watch(lambda: "result") == "result"
        watch(lambda: None)
        cuda.Event.assert_called_with(enable_timing=True)
        cuda.synchronize.assert_not_called()  # nobody waits between spans
        assert watch.seconds() == [0.002, 0.001]
        cuda.synchronize.assert_called_once()


class TestKernels:
    @pytest.mark.parametrize("backend", ["eager", "native"])
    def test_time_flops_bytes_and_share(self, rows_of, backend):
        if backend == "native" and not extension.available():
            pytest.skip(str(extension.reason()))
        found = rows_of("kernels", "--backend", backend, "--steps", "2")
        rows = {row["name"]: row for row in found}
        update = "soap_fast::step_" if backend == "native" else "soap_fast.update"
        refresh = "soap_fast::refresh_" if backend == "native" else "soap_fast.refresh_eager"
        assert rows["soap_fast.begin"]["phase"] == "first"
        assert rows["soap_fast.begin"]["share"] is None
        for name, phase in ((update, "plain"), (refresh, "refresh")):
            row, seconds = rows[name], 1e-6 * rows[name]["us"]
            assert row["phase"] == phase
            assert len(row["samples"]["us"]) == 2
            assert row["gflop_s"] == pytest.approx(row["flops"] / seconds / 1e9)
            least = max(row["flops"] / 100e9, row["bytes"] / 10e9)
            assert row["share"] == pytest.approx(least / seconds)

    @pytest.mark.skipif(not interpreted(), reason="interprets kernels: set TRITON_INTERPRET=1")
    def test_each_launch_by_its_name_with_its_work(self, rows_of, inventory_file):
        path = inventory_file({"model": "m", "params": [{"name": "w", "shape": [33, 9]}]})
        rows = rows_of("kernels", "--of", "launches", "--steps", "1", "--shapes", path)
        plain = {row["name"]: row for row in rows if row["phase"] == "plain"}
        assert [*plain][:2] + [*plain][-1:] == ["gather", "clock", "apply"]
        assert plain["rotate 0"]["flops"] == 2 * 33 * 9 * 33
        assert plain["rotate 0"]["precision"] == "tf32x3"
        assert plain["clock"]["share"] is None
        assert "refresh_" in {row["name"] for row in rows if row["phase"] == "refresh"}

    def test_what_compiles_is_not_timed(self, rows_of, monkeypatch):
        """Every kind of step, after every other one, comes before the first that is profiled."""
        taken, stepped = [], kernels.Stepper.prepare
        monkeypatch.setattr(
            kernels.Stepper, "prepare", lambda self, kind: (taken.append(kind), stepped(self, kind))
        )
        rows_of("kernels", "--backend", "eager", "--steps", "1")
        assert taken[:4] == ["first", "plain", "refresh", "first"]
        assert tuple(taken[4:]) == (*kernels.UNTIMED, "plain", "refresh")


class TestCosts:
    def test_of_a_model(self):
        """Groups: 6x4, and 3 and 3 one by one; 40, 12; none."""
        found = costs(SHAPES, PLAN)
        products = 216 * (24 + 3 + 3) + 480 * (40 + 12)
        triangles = 216 * (25 + 4 + 4) + 480 * (41 + 13)
        squares, cubes = 36 + 16 + 9 + 9 + 1600 + 144, 216 + 64 + 27 + 27 + 64000 + 1728
        assert found["rotate"].flops == found["carry"].flops == 2 * products
        assert found["grams"].flops == triangles
        assert found["refresh_"].flops == pytest.approx((2 + 2 + 8 / 3) * cubes)
        assert found["eigh"] == (9 * cubes, 4 * 2 * squares)
        step = found["step_"]
        assert step == (4 * products + triangles, 4 * (7 * (216 + 480 + 6) + 3 * squares))

    @pytest.mark.parametrize("shapes", ["small_conv", "tiny", "vectors"])
    def test_a_step_is_what_its_launches_say(self, shapes):
        inventory = test_ops.inventory(shapes)
        counted = launches.counted(recorded.record(inventory), inventory)
        case = test_ops.Case("SOAP.step", shapes, "eager", "cpu")
        assert test_ops.cost(case).flops == counted["flops"]


class TestSuite:
    def run(self, *more):
        """pytest bench/ within this process."""
        quick = ("--benchmark-max-time=0.001", "--benchmark-min-rounds=3", "--benchmark-warmup=off")
        return pytest.main([test_ops.__file__, "-q", "-p", "no:cacheprovider", *quick, *more])

    def test_runs_tell_work_and_can_be_compared(self, tmp_path, capsys):
        chosen = ("-k", "grams-tiny", f"--benchmark-storage={tmp_path}")
        assert self.run(*chosen, "--benchmark-autosave") == 0
        (row,) = json.loads(next(tmp_path.rglob("*.json")).read_text())["benchmarks"]
        told = row["extra_info"]
        assert (told["op"], told["shapes"], row["group"]) == ("grams", "tiny", "grams tiny cpu")
        assert told["flops"] == 200 * 32 * (32 + 1)  # both modes as one group
        compare = ("--benchmark-compare", "--benchmark-compare-fail=median:100000%")
        assert self.run(*chosen, *compare) == 0
        assert "0001" in capsys.readouterr().out

    def test_every_op_runs_by_every_backend(self):
        assert self.run("-k", "cpu and (vectors or square)", "--benchmark-disable") == 0
