"""`roof`, `kernels` and `trace`: what a machine can do, what parts of a step take, and of what."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from bench import shapes
from bench.__main__ import main as bench
from bench.commands import kernels, trace
from bench.measuring import clock, graphed
from bench.peers.beside import PLAN
from bench.roofline import costs, launched, roofs
from bench.roofline.roofs import Roofs
from soap_fast import SOAP, GraphedStep, extension
from soap_fast.backends.triton.backend import interpreted

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(6, 4, 3, 3), (40, 12), (6,)]
ROWS = [
    {"roof": "copy", "value": 10.0, "unit": "GB/s"},
    {"roof": "gemm_float32", "value": 100.0, "unit": "GFLOP/s"},
]


@pytest.fixture
def small(inventory_file):
    params = [{"name": str(shape), "shape": list(shape)} for shape in SHAPES]
    return inventory_file({"model": "small", "params": params})


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda device: ROWS)


def results_of(tmp_path, command, *options):
    target = tmp_path / "result.json"
    assert bench([command, *options, "--json", str(target)]) == 0
    return json.loads(target.read_text())["results"]


def refused(capsys, *arguments):
    """The one line of a refusal with exit code 2."""
    try:
        code = bench(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


class TestRoof:
    def test_a_row_for_each_roof_of_the_cpu(self, tmp_path, capsys):
        small = ("--device", "cpu", "--size", "64", "--copy-mib", "1", "--repeats", "3")
        rows = results_of(tmp_path, "roof", *small)
        units = {row["roof"]: row["unit"] for row in rows}
        assert units == {
            "copy": "GB/s", "gemm_float32": "GFLOP/s", "gemm_bfloat16": "GFLOP/s", "host_call": "us"
        }  # fmt: skip
        for row in rows:
            best = min if row["unit"] == "us" else max
            assert 0 < row["value"] == best(row["value"], row["median"])
        assert "gemm_float32" in capsys.readouterr().out

    def test_rates_are_amounts_over_times(self, monkeypatch):
        monkeypatch.setattr(roofs, "samples", lambda *_, **__: [4.0, 2.0, 3.0])
        copy, gemm, _, host = roofs.measure("cpu", roofs.Sizes(2**20, 100))
        assert copy["value"] == 2 * 2**20 / 2.0 / 1e9
        assert copy["median"] == 2 * 2**20 / 3.0 / 1e9
        assert gemm["value"] == 2 * 100**3 / 2.0 / 1e9
        assert host["value"] == 1e6 * 2.0 / roofs.CALLS

    def test_tf32x3_is_a_third_of_tf32(self):
        row = {"roof": "gemm_tf32", "value": 300.0, "median": 270.0, "unit": "GFLOP/s"}
        (derived,) = roofs.derived([row, *ROWS])
        assert (derived["roof"], derived["value"], derived["median"]) == ("gemm_tf32x3", 100, 90)

    def test_the_matmul_precision_is_put_back(self):
        before = torch.get_float32_matmul_precision()
        seen = []

        def fails():
            with roofs.matmul_precision("high"):
                seen.append(torch.get_float32_matmul_precision())
                raise KeyError

        with pytest.raises(KeyError):
            fails()
        assert seen == ["high"]
        assert torch.get_float32_matmul_precision() == before

    def test_least_time_is_of_products_or_of_bytes(self):
        found = Roofs.of_rows(ROWS)
        assert found.least_seconds(1e11, 1e9, "float32") == 1
        assert found.least_seconds(1e9, 1e11, "float32") == 10

    def test_no_gpu(self, capsys, monkeypatch):
        assert "cuda cannot be used here" in refused(capsys, "roof", "--device", "cuda")


class TestClock:
    def test_spans_in_order_and_once(self):
        watch = clock.Stopwatch("cpu", cold=True)
        assert watch(lambda: "result") == "result"
        watch(lambda: torch.randn(10))
        assert len(watch.seconds()) == 2
        assert watch.seconds() == []

    def test_samples_leave_out_the_warm_up_and_what_comes_before(self):
        log = []
        times = clock.samples(
            lambda: log.append("work"), "cpu", 2, before=lambda: log.append("before")
        )
        assert len(times) == 2
        assert log == ["before", "work"] * 3

    def test_on_cuda_events_are_read_after_all_spans(self, monkeypatch):
        """As if there were a GPU: an event says when its stream reached it."""
        ticks, log = iter(range(100)), []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = next(ticks)

            def elapsed_time(self, later):
                log.append("read")
                return float(later.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("wait"))
        watch = clock.Stopwatch("cuda")
        assert watch(lambda: next(ticks)) == 1
        watch(lambda: None)
        assert log == []  # nobody waits between spans
        assert watch.seconds() == [0.002, 0.001]
        assert log == ["wait", "read", "read"]

    def test_quartiles(self):
        assert clock.quartiles([3.0]) == (3, 3, 3)
        assert clock.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2, 3, 4)


class TestOperators:
    @pytest.mark.parametrize("backend", ["eager", "native"])
    def test_time_flops_bytes_and_share(self, small, tmp_path, measured, backend):
        if backend == "native" and not extension.available():
            pytest.skip(str(extension.reason()))
        options = ("--shapes", small, "--device", "cpu", "--backend", backend, "--steps", "2")
        rows = {row["name"]: row for row in results_of(tmp_path, "kernels", *options)}
        update = "soap_fast::step_" if backend == "native" else "soap_fast.update"
        refresh = "soap_fast::refresh_" if backend == "native" else "soap_fast.refresh_eager"
        assert rows[update]["phase"] == "plain"
        assert rows[refresh]["phase"] == "refresh"
        assert rows["soap_fast.begin"]["phase"] == "first"
        for name in (update, refresh):
            row, seconds = rows[name], 1e-6 * rows[name]["us"]
            assert row["gflop_s"] == pytest.approx(row["flops"] / seconds / 1e9)
            least = max(row["flops"] / 100e9, row["bytes"] / 10e9)
            assert row["share"] == pytest.approx(least / seconds)
        assert rows["soap_fast.begin"]["share"] is None
        assert all(row["times"] >= 1 for row in rows.values())

    def test_costs_of_a_model(self):
        """Groups: 6x4, and 3 and 3 one by one; 40, 12; none."""
        found = costs.costs(SHAPES, PLAN)
        products = 216 * (24 + 3 + 3) + 480 * (40 + 12)
        triangles = 216 * (25 + 4 + 4) + 480 * (41 + 13)
        squares = 36 + 16 + 9 + 9 + 1600 + 144
        assert found["soap_fast.rotate"].flops == 2 * products
        assert found["soap_fast.grams"].flops == triangles
        step = found["soap_fast::step_"]
        assert step == (4 * products + triangles, 4 * (7 * (216 + 480 + 6) + 3 * squares))

    def test_an_unknown_backend(self, small, measured, capsys):
        options = ("--shapes", small, "--device", "cpu", "--backend", "magic")
        assert "backend='magic' is not one of" in refused(capsys, "kernels", *options)

    def test_a_roof_of_a_file(self, small, tmp_path, monkeypatch, capsys):
        roof = tmp_path / "roof.json"
        sizes = ("--size", "32", "--copy-mib", "1", "--repeats", "1", "--device", "cpu")
        assert bench(["roof", *sizes, "--json", str(roof)]) == 0
        monkeypatch.setattr(kernels, "measure", None)  # not asked
        options = ("--shapes", small, "--device", "cpu", "--steps", "1", "--roof", str(roof))
        assert results_of(tmp_path, "kernels", *options)[0]["name"]
        capsys.readouterr()
        content = json.loads(roof.read_text())
        roof.write_text(json.dumps({**content, "results": [{"roof": "copy"}]}))
        assert "holds no roofs" in refused(capsys, "kernels", *options)
        content["machine"]["processor"] = "another"
        roof.write_text(json.dumps(content))
        error = refused(capsys, "kernels", *options)
        assert "is of another machine (processor another and " in error
        roof.write_text("{}")
        assert "is no result file" in refused(capsys, "kernels", *options)
        roof.unlink()
        assert "No such file" in refused(capsys, "kernels", *options)


class TestLaunches:
    @pytest.mark.skipif(not interpreted(), reason="interprets kernels: set TRITON_INTERPRET=1")
    def test_each_by_its_name_with_its_work(self, tmp_path, measured, inventory_file):
        path = inventory_file({"model": "m", "params": [{"name": "w", "shape": [33, 9]}]})
        options = ("--shapes", path, "--device", "cpu", "--of", "launches", "--steps", "1")
        rows = results_of(tmp_path, "kernels", *options)
        plain = [row["name"] for row in rows if row["phase"] == "plain"]
        assert plain[:2] == ["gather", "clock"]
        assert plain[-1] == "apply"
        assert {"rotate 0", "rotate back 0"} <= set(plain)
        assert "refresh_" in {row["name"] for row in rows if row["phase"] == "refresh"}
        by_name = {row["name"]: row for row in rows if row["phase"] == "plain"}
        assert by_name["rotate 0"]["flops"] == 2 * 33 * 9 * 33
        assert by_name["rotate 0"]["precision"] == "tf32x3"
        assert by_name["clock"]["share"] is None
        assert all(row["us"] > 0 for row in rows)

    def test_what_is_not_watched_is_not_timed(self):
        launcher = launched.TimingLauncher(1, "cpu")
        assert launcher.timed("refresh_", lambda: 7) == 7
        (timed,) = launcher.taken()
        assert timed.op == "refresh_"
        assert not launcher.watches("gather")

    def test_no_gpu(self, small, capsys, monkeypatch):
        monkeypatch.setattr(kernels, "interpreted", lambda: False)
        options = ("--shapes", small, "--of", "launches", "--device", "cpu")
        assert "torch sees no NVIDIA GPU; take --of operators" in refused(
            capsys, "kernels", *options
        )


class TestTrace:
    def test_a_file_for_a_viewer_and_a_table(self, small, tmp_path, capsys):
        out = tmp_path / "deep" / "trace.json.gz"
        options = ("--shapes", small, "--device", "cpu", "--steps", "1", "--out", str(out))
        rows = {row["name"]: row for row in results_of(tmp_path, "trace", *options)}
        assert rows["soap_fast.update"]["times"] == 3
        assert rows["soap_fast.update"]["device_ms"] is None
        assert sum(rows[name]["share"] for name in trace.PHASES) == pytest.approx(1)
        events = json.loads(gzip.decompress(out.read_bytes()))["traceEvents"]
        names = {event.get("name") for event in events}
        assert {*trace.PHASES, "first step", "plain step", "refresh step"} <= names
        assert "ui.perfetto.dev" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--nvtx", "--device", "cpu"), "--nvtx needs a GPU"),
            (("--shapes", "vgg"), "no shapes 'vgg'"),
            (("--backend", "magic", "--shapes", "hyperprior"), "backend='magic' is not one of"),
            (("--out", "bench", "--shapes", "hyperprior"), "--out bench is a folder"),
        ],
    )
    def test_bad_input(self, options, message, capsys, monkeypatch):
        assert message in refused(capsys, "trace", *options)


def test_graphs_of_steps_need_a_gpu(capsys):
    assert "--graphed replays CUDA graphs" in refused(capsys, "step", "--graphed")
    error = refused(capsys, "step", "--graphed", "--peers", "adamw")
    assert "make one after the other" in error


def test_only_replays_of_both_graphs_are_timed(monkeypatch, small):
    """As if there were a GPU: graphs are captured at the 4th plain and the 2nd refreshing call."""
    replayed = []

    class Step(GraphedStep):
        def __call__(self):
            replayed.append(self.refreshes_next())
            self.optimizer.step()

    def eager(params, backend, **options):
        assert backend == "triton"
        return SOAP(params, backend="eager", **options)

    monkeypatch.setattr(graphed, "GraphedStep", Step)
    monkeypatch.setattr(graphed, "SOAP", eager)
    seen = []
    monkeypatch.setattr(
        graphed.Times, "add", lambda self, elapsed, **kind: seen.append(tuple(kind.values()))
    )
    monkeypatch.setattr(graphed.Times, "summary", lambda *_: {})
    monkeypatch.setattr(graphed.Times, "tail", lambda *_: {})
    graphed.measure(shapes.load(small), "cpu", frequency=3, periods=2)
    first, *rest = seen
    assert first == (True, False)
    assert len(rest) == 3 * 2
    assert [refresh for _, refresh in rest] == replayed[-6:]
    assert sum(refresh for _, refresh in rest) == 2
    before = replayed[: -len(rest)]
    assert before.count(False) >= 4
    assert before.count(True) >= 2


def test_tails_of_times():
    from bench.measuring.calls import Elapsed, Times

    times = Times()
    for call in range(201):
        times.add(Elapsed(float(call), 0.5), first=call == 0, refresh=call % 10 == 0)
    assert times.tail() == {"host_ms": 0.5, "p99_ms": 198.0}
    assert Times(first=[1.0]).tail() == {"host_ms": None, "p99_ms": None}


@pytest.mark.parametrize(
    "command",
    ["roof", "kernels", "refresh", "step", "train", "launches", "trace", "device", "plan"],
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"`{command}`: " in text
    assert "--json" in text
