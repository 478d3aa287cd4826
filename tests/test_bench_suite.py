"""`pytest bench/`: which cases there are, what they are said to do, and what is kept of a run."""

from __future__ import annotations

import json
import platform
import tomllib
from pathlib import Path

import pytest
import torch
from streams import needs_native

from bench.roofline import counted
from bench.suite import launches, roofs
from bench.suite.cases import BACKENDS, Case, cases, cost, prepare
from bench.suite.classes import CLASSES, inventory
from bench.suite.timer import event_timer, replay
from soap_fast import SOAP

pytestmark = pytest.mark.usefixtures("one_thread")  # small work, and other tests beside it
ROOT = Path(__file__).parent.parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def known_roofs(monkeypatch):
    """As if this machine multiplied 1e9 flops and copied 1e9 bytes a second."""
    product = {"roof": "gemm_float32", "value": 1.0, "unit": "GFLOP/s"}
    monkeypatch.setattr(roofs, "gemm_row", lambda *_: product)
    monkeypatch.setattr(
        roofs, "copy_row", lambda *_: {"roof": "copy", "value": 1.0, "unit": "GB/s"}
    )
    roofs.roofs.cache_clear()
    yield
    roofs.roofs.cache_clear()


def run_suite(*arguments):
    """pytest bench/ within this process, where torch is loaded."""
    quick = ("--benchmark-max-time=0.001", "--benchmark-min-rounds=3", "--benchmark-warmup=off")
    return pytest.main([str(ROOT / "bench"), "-q", "-p", "no:cacheprovider", *quick, *arguments])


class TestCases:
    def test_every_op_on_every_class_by_every_backend(self):
        found = list(cases(("cpu",)))
        assert len(found) >= 30
        assert len({case.id for case in found}) == len(found)
        assert {case.op for case in found} == set(BACKENDS)
        assert {case.shapes for case in found} == set(CLASSES)
        assert {case.backend for case in found} == {"eager", "native"}
        both = {case.group for case in found if case.backend == "native"}
        assert both == {case.group for case in found if case.group in both} != set()

    def test_triton_comes_with_a_gpu(self):
        assert "triton" in {case.backend for case in cases(("cuda",))}

    def test_plain_pytest_leaves_them_out(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert project["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]


class TestWork:
    @pytest.mark.parametrize("shapes", ["small_conv", "tiny", "vectors"])
    def test_a_step_is_what_its_launches_say_and_its_tensors_weigh(self, shapes):
        found = cost(Case("SOAP.step", shapes, "eager", "cpu"))
        assert found.flops == counted.exact(inventory(shapes))["flops"]
        params = inventory(shapes).parameters()
        inventory(shapes).set_gradients(params, seed=1)
        optimizer = SOAP(params, backend="eager")
        optimizer.step()
        moved = 0
        for param, state in optimizer.state.items():
            both = (param, state["exp_avg"], state["exp_avg_sq"], *state["GG"])
            once = (param.grad, *state["Q"])
            moved += 2 * sum(x.nbytes for x in both if x is not None)
            moved += sum(x.nbytes for x in once if x is not None)
        assert found.bytes == moved

    @pytest.mark.parametrize("shapes", ["small_conv", "square", "tiny"])
    def test_rotations_and_grams_make_up_a_step(self, shapes):
        step, there, gram, carry = (
            cost(Case(op, shapes, "eager", "cpu")).flops
            for op in ("step_", "rotate", "grams", "carry_")
        )
        assert step == 2 * there + gram
        assert carry == there

    def test_refreshes_and_first_bases(self):
        cubes = 200 * (8**3 + 4**3)
        refresh, eigh = (cost(Case(op, "tiny", "eager", "cpu")) for op in ("refresh_", "eigh"))
        assert refresh.flops == pytest.approx(2 * 2 * cubes + 8 / 3 * cubes)
        assert eigh.flops == 9 * cubes
        assert refresh.bytes == 2 * eigh.bytes == 4 * 4 * 200 * (8**2 + 4**2)

    @needs_native
    @pytest.mark.parametrize("op", ["step_", "refresh_", "carry_", "eigh"])
    def test_the_extension_is_one_call(self, op):
        assert prepare(Case(op, "small_conv", "native", "cpu"))[1].launches == 1
        assert prepare(Case(op, "small_conv", "eager", "cpu"))[1].launches > 30

    def test_kernels_of_the_triton_backend(self):
        params = inventory("small_conv").parameters()
        assert (
            launches.kernels_of_a_step(SOAP(params))
            == counted.exact(inventory("small_conv"))["launches_plain"]
        )

    def test_views_and_allocations_are_no_operators(self):
        x = torch.ones(3)
        assert launches.operators(lambda: torch.empty(3).view(3, 1).T) == 0
        assert launches.operators(lambda: x.view(3, 1).T + x) == 1
        assert launches.operators(lambda: x.add_(1)) == 1


class TestRuns:
    def test_the_json_tells_work_roofs_and_the_machine(self, known_roofs, tmp_path, capsys):
        target = tmp_path / "now.json"
        chosen = "SOAP.step-vectors-eager or grams-tiny or eigh-tiny-eager"
        assert run_suite("-k", chosen, "--benchmark-json", str(target)) == 0
        content = json.loads(target.read_text())
        assert content["machine_info"]["threads"] == torch.get_num_threads()
        assert content["machine_info"]["versions"]["torch"] == torch.__version__
        assert platform.node() not in json.dumps(content["machine_info"])
        rows = {
            (x["op"], x["shapes"]): (x, b) for b in content["benchmarks"] if (x := b["extra_info"])
        }
        assert set(rows) == {("SOAP.step", "vectors"), ("grams", "tiny"), ("eigh", "tiny")}
        told, measured = rows["grams", "tiny"]
        assert measured["group"] == "grams tiny cpu"
        least = max(told["flops"], told["bytes"]) / 1e9
        assert told["share_of_roof"] == pytest.approx(least / measured["stats"]["median"])
        assert "SOAP.step vectors cpu" in capsys.readouterr().out

    def test_a_run_is_compared_with_the_one_before(self, known_roofs, tmp_path, capsys):
        chosen = ("-k", "SOAP.step-vectors-eager", f"--benchmark-storage={tmp_path}")
        assert run_suite(*chosen, "--benchmark-autosave") == 0
        capsys.readouterr()
        lenient = "--benchmark-compare-fail=median:100000%"
        assert run_suite(*chosen, "--benchmark-compare", lenient) == 0
        output = capsys.readouterr().out
        assert "(NOW)" in output
        assert "0001" in output
        assert "machine_info is different" not in output

    def test_without_timing_no_roof_is_measured(self, monkeypatch):
        monkeypatch.setattr(roofs, "gemm_row", lambda *_: pytest.fail("a roof was measured"))
        roofs.roofs.cache_clear()
        chosen = "cpu and (vectors or square)"  # a third of all, with every op and backend
        assert run_suite("-k", chosen, "--benchmark-disable") == 0

    def test_products_of_triton_on_a_gpu_have_a_roof_of_their_own(self, monkeypatch):
        rates = {"gemm_float32": 10.0, "gemm_tf32": 60.0}

        def row(name, *_):
            return {"roof": name, "value": rates[name], "median": 1.0, "unit": "GFLOP/s"}

        monkeypatch.setattr(roofs, "gemm_row", row)
        monkeypatch.setattr(
            roofs, "copy_row", lambda *_: {"roof": "copy", "value": 1.0, "unit": "GB/s"}
        )
        roofs.roofs.cache_clear()
        found = roofs.roofs("cuda")
        roofs.roofs.cache_clear()
        assert found.gemm[roofs.precision("triton", "cuda")] == 20e9
        assert found.gemm[roofs.precision("native", "cuda")] == 10e9
        assert roofs.precision("triton", "cpu") == "float32"  # interpreted

    def test_without_the_plugin_it_says_how_to_get_it(self, capsys):
        assert run_suite_without_the_plugin() == 4
        assert "pip install pytest-benchmark" in capsys.readouterr().err


def run_suite_without_the_plugin():
    return pytest.main([str(ROOT / "bench"), "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"])


class Event:
    """An event of a device that is a float32 of milliseconds away from every other one."""

    clock = 0.0  # seconds

    def record(self):
        self.at = Event.clock

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, later):
        assert later.waited
        return torch.tensor((later.at - self.at) * 1e3, dtype=torch.float32).item()


class TestDeviceTimer:
    def test_it_stays_exact_after_hours(self):
        timer = event_timer(Event)
        assert timer() == 0.0
        Event.clock += 1e5
        start = timer()
        Event.clock += 1e-6
        assert timer() - start == pytest.approx(1e-6, rel=1e-3)

    def test_making_one_touches_no_device(self):
        event_timer()

    @pytest.mark.gpu
    @needs_gpu
    def test_it_times_the_device_and_graphs_repeat(self):
        x, timer = torch.zeros(2**24, device="cuda"), event_timer()
        again = replay(lambda: x.add_(1))
        torch.cuda.synchronize()
        before = float(x[0])
        start = timer()
        again()
        assert timer() > start
        assert float(x[0]) == before + 1

    @pytest.mark.gpu
    @needs_gpu
    def test_every_case_of_a_gpu_runs(self):
        for case in cases(("cuda",)):
            call, done = prepare(case)
            call()
            assert done.launches > 0, case.id
