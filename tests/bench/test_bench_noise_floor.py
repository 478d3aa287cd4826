"""The table of drift is made of rows, and shows that ours does not drift."""

from __future__ import annotations

import json
import sys

import pytest
import tolerances

from bench import noise_floor


def test_drift_is_measured_and_shown(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr(noise_floor, "SCALES", (1.0,))
    monkeypatch.setattr(sys, "argv", ["noise_floor", "--drift-only", "--out", str(tmp_path)])
    noise_floor.main()
    rows = json.loads((tmp_path / "result.json").read_text())["results"]
    moved = {(row["optimizer"], row["case"]): row["moved"] for row in rows}
    for backend in ("eager", "native"):
        assert moved[f"soap_fast, backend {backend}", "unused_columns"] == 0
        found = moved[f"soap_fast, backend {backend}", "across_the_span"]
        assert found <= tolerances.OUT_OF_SPAN
    assert moved["torch's Adam", "across_the_span"] > 0.1
    assert (tmp_path / "table.md").read_text().count("\n| ") >= len(moved) / 2
    assert "torch's Adam" in capsys.readouterr().out


def test_a_step_is_timed_with_the_floor_and_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(noise_floor, "FREQUENCY", 2)
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps({"model": "tiny", "params": [{"name": "a", "shape": [24, 16]}]}))
    arguments = ["noise_floor", "--cost", str(shapes), "--periods", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    noise_floor.main()
    rows = json.loads((tmp_path / "cost_tiny.json").read_text())["results"]
    assert [row["noise_floor"] for row in rows] == [0, 1]
    assert rows[0]["ratio"] == 1
    assert rows[1]["ratio"] == rows[1]["mean_ms"] / rows[0]["mean_ms"]
    assert "ratio" in capsys.readouterr().out
