"""`python -m soap_fast` and `python -m bench`: what they print, where, and with which exit code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from bench import shapes
from bench.__main__ import main as bench
from bench.files import BadInput
from soap_fast import SOAP, extension
from soap_fast.__main__ import main as describe
from soap_fast.self_check import Choice, Verdict
from soap_fast.versions import triton_version

SMALL = {
    "model": "small",
    "params": [
        {"name": "quantiles", "shape": [4, 1, 3], "aux": True},
        {"name": "frozen", "shape": [4, 4], "grad": False},
        {"name": "weight", "shape": [6, 4, 3, 3]},
        {"name": "table", "shape": [2, 5, 5], "contiguous": False},
        {"name": "bias", "shape": [6]},
    ],
}


@pytest.fixture
def small(inventory_file):
    return inventory_file(SMALL)


def run_in_a_process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


class TestDescription:
    def test_json_tells_everything_and_the_checks_pass(self):
        done = run_in_a_process("-m", "soap_fast", "--json")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["backend"] in [b["name"] for b in facts["backends"] if b["usable"]]
        assert facts["devices"][0]["type"] == "cpu"
        assert all(check["ok"] for check in facts["self_check"])
        checked = [check["what"] for check in facts["self_check"] if check["default"]]
        assert f"backend {facts['backend']} on cpu" in checked
        assert facts["extension"]["available"] == (facts["extension"]["reason"] is None)
        for part in facts["missing"]:
            assert part["how"]

    def test_text_names_every_part(self, capsys):
        assert describe([]) == 0
        text = capsys.readouterr().out
        for word in ("Versions", "torch", "Extension", "Backends", "runs by default", "passed"):
            assert word in text

    def test_a_failing_check_is_reported_and_ends_with_1(self, capsys, monkeypatch):
        def broken(name, device, make):
            return Verdict(None, 5e-4, f"RuntimeError: no such luck with {name}")

        monkeypatch.setattr("soap_fast.install.check_here", broken)
        assert describe([]) == 1
        assert "FAILED: RuntimeError: no such luck with eager" in capsys.readouterr().out

    def test_a_failing_check_of_what_does_not_run_by_default_ends_with_0(self, capsys, monkeypatch):
        def broken(name, device, make):
            error = 1e-5 if name == Choice(SOAP, "tf32x3")(torch.device(device)) else 0.1
            return Verdict(error, 5e-4)

        monkeypatch.setattr("soap_fast.install.check_here", broken)
        assert describe([]) == 0
        if extension.available():
            assert "FAILED: 0.1; it does not run by default" in capsys.readouterr().out

    def test_a_triton_of_another_distribution(self, monkeypatch):
        def unknown(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr("importlib.metadata.version", unknown)
        assert triton_version.__wrapped__() == "of another distribution"

    def test_without_extension_and_triton_it_says_how_to_get_them(self, capsys, monkeypatch):
        monkeypatch.setattr("soap_fast.extension.available", lambda: False)
        monkeypatch.setattr("soap_fast.extension.reason", lambda: "no compiler; install one")
        monkeypatch.setattr("soap_fast.install.triton_version", lambda: None)
        assert describe([]) == 0
        text = capsys.readouterr().out
        assert "no compiler; install one" in text
        assert "pip install triton" in text


class TestStep:
    def test_json_on_standard_output_and_nothing_else(self, small, capfd):
        assert bench(["step", "--shapes", small, "--json", "-"]) == 0
        content = json.loads(capfd.readouterr().out)  # of its processes as well
        assert set(content) == {"command", "machine", "versions", "commit", "results"}
        (result,) = content["results"]
        assert result["name"] == "soap_fast"
        assert result["peak_bytes"] is not None
        assert result["shapes"] == "small"
        assert result["tensors"] == 3
        assert result["parameters"] == 6 * 4 * 9 + 2 * 25 + 6
        for key in ("first_ms", "plain_ms", "refresh_ms", "mean_ms"):
            assert result[key] > 0
        numel, factors = result["parameters"], 6**2 + 4**2 + 2 * 9 + 2**2 + 2 * 25
        # step, skipped, refreshes; off_diagonal
        counters = 3 * (4 + 8 + 3 * 8) + (4 + 3 + 1) * 4
        state = (2 * numel + 2 * factors) * 4 + counters  # moments, K and Q
        assert result["state_ratio"] == pytest.approx(state / (4 * numel))

    @pytest.fixture
    def no_peaks(self, monkeypatch):
        """The first of these tests takes a real one, in a process that loads torch."""
        monkeypatch.setattr("bench.step.peak_bytes", lambda *_: 1000)

    def test_a_table_and_a_file(self, small, tmp_path, capsys, no_peaks):
        target = tmp_path / "deep" / "result.json"
        assert bench(["step", "--shapes", small, "--json", str(target)]) == 0
        assert "mean_ms" in capsys.readouterr().out
        assert json.loads(target.read_text())["results"]

    def test_frequency_one_has_no_plain_calls(self, small, bench_rows, no_peaks):
        (result,) = bench_rows("step", "--shapes", small, "--precondition-frequency", "1")
        assert result["plain_ms"] is None
        assert result["mean_ms"] == result["refresh_ms"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--shapes", "vgg"], "no shapes 'vgg': take cheng2020_attn, dcae"),
            (["--shapes", __file__], "is not an inventory"),
            (["--backend", "magic"], "backend='magic' is not one of"),
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, small, options, message, capsys):
        given = options if "--shapes" in options else ["--shapes", small, *options]
        assert bench(["step", *given]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments", [[], ["step", "--periods", "0"], ["step", "--device", "nowhere"], ["nothing"]]
    )
    def test_bad_usage_is_one_line_and_exit_code_2(self, arguments, capsys):
        with pytest.raises(SystemExit) as stopped:
            bench(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_result_that_cannot_be_written_is_refused_before_the_measurement(self, small, capsys):
        target = f"{small}/below-a-file/result.json"
        assert bench(["step", "--shapes", small, "--json", target]) == 2
        assert capsys.readouterr().err.startswith("python -m bench step: --json ")


class TestInventories:
    @pytest.mark.parametrize(
        "entry",
        [
            {"name": "w", "shape": [2, -3]},
            {"name": "w", "shape": ["x"]},
            {"name": "w", "shape": [], "contiguous": False},
            {"shape": [2]},
        ],
    )
    def test_a_bad_entry_is_refused(self, entry, tmp_path):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({"model": "bad", "params": [entry]}))
        with pytest.raises(BadInput, match="is not an inventory"):
            shapes.load(str(path))

    @pytest.mark.parametrize("name", shapes.names())
    def test_every_inventory_loads_whole(self, name):
        content = json.loads((shapes.FOLDER / f"{name}.json").read_text())
        inventory = shapes.load(name)
        kept = [p for p in content["params"] if not p.get("aux") and p.get("grad", True)]
        assert [entry.name for entry in inventory.entries] == [p["name"] for p in kept]
        # num_params_main counts all but the auxiliary ones, those without a gradient included
        frozen = [p for p in content["params"] if not p.get("aux") and not p.get("grad", True)]
        missing = sum(torch.Size(p["shape"]).numel() for p in frozen)
        assert inventory.numel + missing == content["num_params_main"]

    def test_permuted_tables_have_the_models_strides(self, small):
        inventory = shapes.load(small)
        params = inventory.parameters()
        inventory.set_gradients(params, seed=1)
        assert params[1].shape == (2, 5, 5)
        assert params[1].stride() == params[1].grad.stride() == (1, 10, 2)


class TestRefresh:
    @pytest.mark.parametrize("op", ["eager", "native"])
    def test_json_has_times_and_ratios(self, small, op, bench_rows):
        if op == "native" and not extension.available():
            assert bench(["refresh", "--shapes", small, "--op", op]) == 2
            return
        (result,) = bench_rows("refresh", "--shapes", small, "--op", op, "--repeats", "1")
        assert result["factors"] == 4 + 3
        assert result["largest"] == 6
        assert result["threads"] == torch.get_num_threads()
        for what in ("refresh", "eigh"):
            ratio = result[f"{what}_loop_ms"] / result[f"{what}_ms"]
            assert result[f"{what}_ratio"] == pytest.approx(ratio)

    def test_without_the_extension_it_says_so(self, small, monkeypatch, capsys):
        monkeypatch.setattr("soap_fast.extension.available", lambda: False)
        monkeypatch.setattr("soap_fast.extension.reason", lambda: "no compiler; install one")
        assert bench(["refresh", "--shapes", small]) == 2
        assert "no compiler; install one" in capsys.readouterr().err
