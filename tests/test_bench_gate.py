"""`python -m bench gate`: what it holds; a slowdown or a change of the launches trips it."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import pytest
import torch
from launched import short_sums

from bench import shapes
from bench.__main__ import main as bench
from bench.commands import gate
from bench.gates import exact, ratios, spills
from bench.measuring import aot, recorded
from bench.roofline import counted
from soap_fast import SOAP
from soap_fast.backends.triton.backend import TritonBackend

ROOT = Path(__file__).parent.parent
MODEL = "hyperprior"  # the smallest of those that are recorded


@pytest.fixture(scope="module")
def found():
    return counted.exact(shapes.load(MODEL))


@pytest.fixture
def run(tmp_path, capsys):
    """Exit code, and the checks that failed."""

    def gated(*options):
        target = tmp_path / "checks.json"
        code = bench(["gate", "--shapes", MODEL, "--json", str(target), *options])
        rows = json.loads(target.read_text())["results"]
        assert code == int(not all(row["ok"] for row in rows))
        assert "checks, " in capsys.readouterr().out
        return code, {row["check"] for row in rows if not row["ok"]}

    return gated


class TestExact:
    def test_this_tree_passes(self, found):
        rows = list(exact.checks(found, exact.expected(MODEL)))
        assert [row for row in rows if not row["ok"]] == []
        assert len(rows) == len(exact.FIELDS) + 2

    @pytest.mark.parametrize("field", [*exact.FIELDS, "state_bytes"])
    def test_a_change_either_way_trips(self, found, field):
        for factor in (0.999, 1.001):
            expected = {**exact.expected(MODEL), field: factor * found[field]}
            failed = [row["check"] for row in exact.checks(found, expected) if not row["ok"]]
            assert failed == [field]

    def test_a_launch_that_changed_is_named(self, found):
        expected = copy.deepcopy(exact.expected(MODEL))
        expected["by_launch"][0]["bytes"] += 4
        (failed,) = (row for row in exact.checks(found, expected) if not row["ok"])
        assert failed["found"] == expected["by_launch"][0]["launch"]

    def test_other_tiles_trip(self, run):
        assert run("--only", "exact")[0] == 0
        with short_sums(7):
            code, failed = run("--only", "exact")
        assert code == 1
        assert {"tiles", "bytes", "by_launch"} <= failed

    def test_a_larger_state_trips(self, run, monkeypatch):
        def fatter(param, plan, skipped):
            return {**fresh(param, plan, skipped), "more": torch.empty_like(param)}

        fresh = recorded.fresh
        monkeypatch.setattr(recorded, "fresh", fatter)
        code, failed = run("--only", "exact")
        assert code == 1
        assert "state_bytes" in failed

    def test_every_recorded_model_has_a_state(self):
        for model in exact.models():
            assert exact.expected(model)["state_bytes"] > 0

    def test_states_are_recorded_and_others_stay(self, found, tmp_path):
        path = tmp_path / "state.json"
        exact.record_state([{**found, "model": "other"}], path)
        exact.record_state([found], path)
        rows = {row["model"]: row for row in json.loads(path.read_text())["results"]}
        assert set(rows) == {"other", MODEL}
        assert rows[MODEL]["state_bytes"] == found["state_bytes"]


class TestHost:
    def test_work_per_step_on_the_host_trips(self, run, monkeypatch):
        assert run("--only", "host")[0] == 0

        def slow(backend, *arguments):
            time.sleep(2e-3)
            return steady_step(backend, *arguments)

        steady_step = TritonBackend.steady_step
        monkeypatch.setattr(TritonBackend, "steady_step", slow)
        assert run("--only", "host") == (1, {"host_ratio"})


class TestPeers:
    @pytest.fixture
    def small(self):
        entries = [shapes.Entry(f"w{i}", (24, 16, 3, 3), True) for i in range(8)]
        return shapes.Inventory("small", tuple(entries))

    def test_a_slower_step_trips(self, small, monkeypatch):
        """Under a limit of the same run: as wide a margin as the gate's over what is found now."""
        threads = torch.get_num_threads()
        (row,) = ratios.peers(small, {"oracle": 1e-3})
        assert row["ok"]
        expected = {"oracle": 1 / row["found"]}

        def slow(optimizer, closure=None):
            time.sleep(0.1)
            return step(optimizer, closure)

        step = SOAP.step
        monkeypatch.setattr(SOAP, "step", slow)
        (row,) = ratios.peers(small, expected)
        assert not row["ok"]
        assert row["check"] == "step / oracle"
        assert torch.get_num_threads() == threads

    def test_what_is_expected_is_recorded(self):
        found = ratios.speedups(gate.PEER_SHAPES)
        assert found["oracle"] > 1
        assert set(found) <= set(ratios.PEERS)

    def test_a_peer_that_is_not_installed_is_left_out(self, monkeypatch):
        monkeypatch.setattr(ratios, "find_spec", lambda name: None)
        assert list(ratios.speedups(gate.PEER_SHAPES)) == ["oracle"]


class TestAttempts:
    @pytest.mark.parametrize(
        ("found", "lowest", "attempts"),
        [
            ([[1.0, 1.0]], [1.0, 1.0], 1),
            ([[9.0, 1.0], [1.0, 9.0]], [1.0, 1.0], 2),  # noise, each time elsewhere
            ([[9.0, 1.0], [8.0, 1.0], [7.0, 1.0]], [7.0, 1.0], 3),
        ],
    )
    def test_noise_is_forgiven_and_a_slowdown_is_not(self, found, lowest, attempts):
        made = iter(found)
        assert ratios.lowest(lambda: next(made), [2.0, 2.0]) == lowest
        assert len(list(made)) == len(found) - attempts


class TestSpills:
    ROW = {  # noqa: RUF012
        "kernel": "rotate", "options": "tf32x3 ADAM", "sm": 90, "stack_bytes": 0, "spill_bytes": 0,
        "load_bytes": 16, "registers": 200,
    }  # fmt: skip

    def failed(self, rows, recorded):
        return [row for row in spills.checks(rows, recorded) if not row["ok"]]

    def test_as_recorded(self):
        assert self.failed([self.ROW], spills.by_configuration([self.ROW])) == []
        other = {**self.ROW, "registers": 100}  # a register more is no spill
        assert self.failed([other], spills.by_configuration([self.ROW])) == []

    @pytest.mark.parametrize(
        "change", [{"spill_bytes": 8}, {"stack_bytes": 8}, {"load_bytes": 4}, {"sm": 100}]
    )
    def test_a_spill_a_narrow_load_and_another_kernel_trip(self, change):
        failed = self.failed([{**self.ROW, **change}], spills.by_configuration([self.ROW]))
        assert failed
        assert failed[0]["of"].startswith("rotate tf32x3 ADAM sm_")

    def test_without_a_record_nothing_may_spill(self):
        assert spills.expected("0.0") is None
        assert self.failed([self.ROW], None) == []
        assert self.failed([{**self.ROW, "spill_bytes": 8}], None)

    def test_the_record_of_this_triton_is_found(self):
        recorded = spills.expected("3.6.0")
        assert len(recorded) == len(list(aot.configurations())) * len(aot.ARCHITECTURES)
        assert self.failed(list(recorded.values()), recorded) == []

    def test_a_result_of_another_commit_is_refused(self, tmp_path, capsys):
        path = tmp_path / "aot.json"
        rows = {"machine": {}, "commit": "another", "results": [self.ROW]}
        path.write_text(json.dumps(rows))
        assert bench(["gate", "--only", "spills", "--kernels", str(path)]) == 2
        assert "is not of this commit" in capsys.readouterr().err


class TestBadInput:
    def test_unknown_shapes(self, capsys):
        assert bench(["gate", "--only", "exact", "--shapes", "vgg"]) == 2
        said = capsys.readouterr().err
        assert "no shapes 'vgg': take " in said
        assert said.count("\n") == 1

    def test_a_model_without_a_record(self, tmp_path, capsys):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"model": "mine", "params": [{"name": "w", "shape": [2, 2]}]}))
        assert bench(["gate", "--only", "exact", "--shapes", str(path)]) == 2
        said = capsys.readouterr().err
        assert "knows no 'mine': take elic" in said
        assert said.count("\n") == 1


def test_the_gates_of_the_repository_call_it():
    assert "-m bench gate" in (ROOT / ".ci" / "run").read_text()
