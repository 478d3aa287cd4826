"""Launches, bytes, flops, spills and state are as recorded: alike on every machine, or changed.

Any difference trips, a gain as well: then it is recorded anew, by a commit that says why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from launched import short_sums

from bench import launches, recorded, shapes
from bench.cost import aot

RESULTS = Path(__file__).parent.parent / "bench" / "results"
RECORDED = RESULTS / "launches" / "recorded.json"
BY_MODEL = {row["model"]: row for row in json.loads(RECORDED.read_text())["results"]}
SMALLEST = "hyperprior"
AGAIN = "python -m bench launches --json bench/results/launches/recorded.json"
EXACT = (
    "launches_plain", "launches_refresh", "tiles", "flops", "executed_flops", "bytes",
    "bytes_ratio", "padding", "workspace_ratio", "state_bytes", "by_launch",
)  # fmt: skip
OF_A_KERNEL = ("stack_bytes", "spill_bytes", "load_bytes")


def exact(model: str) -> dict:
    inventory = shapes.load(model)
    found = launches.counted(recorded.record(inventory), inventory)
    return {field: found[field] for field in EXACT}


@pytest.mark.parametrize("model", BY_MODEL)
def test_a_step_is_as_recorded(model):
    assert exact(model) == {field: BY_MODEL[model][field] for field in EXACT}, AGAIN


def test_other_tiles_and_a_larger_state_show(monkeypatch):
    before = exact(SMALLEST)
    with short_sums(7):
        other = exact(SMALLEST)
    assert {field for field in EXACT if other[field] != before[field]} >= {
        "tiles", "bytes", "by_launch",
    }  # fmt: skip
    fresh = recorded.fresh
    monkeypatch.setattr(
        recorded, "fresh", lambda p, *more: {**fresh(p, *more), "more": p.detach().clone()}
    )
    assert exact(SMALLEST)["state_bytes"] > before["state_bytes"]


def by_configuration(rows: list[dict]) -> dict[str, dict]:
    return {
        f"{row['kernel']} {row['options']} sm_{row['sm']}": {f: row[f] for f in OF_A_KERNEL}
        for row in rows
    }


def kernels_of(triton: str) -> list[dict] | None:
    """What is recorded of the kernels under a version of Triton."""
    for path in sorted((RESULTS / "kernels").glob("aot*.json")):
        content = json.loads(path.read_text())
        if content["versions"]["triton"] == triton:
            return content["results"]
    return None


def test_every_kernel_of_every_configuration_is_recorded():
    recorded = by_configuration(kernels_of("3.6.0"))
    assert len(recorded) == len(list(aot.configurations())) * len(aot.ARCHITECTURES)


@pytest.mark.skipif("SOAP_FAST_AOT" not in os.environ, reason="SOAP_FAST_AOT names no result")
def test_kernels_spill_and_load_as_recorded():
    """Of `python -m bench kernels --aot --json`; without a record nothing may spill at all."""
    content = json.loads(Path(os.environ["SOAP_FAST_AOT"]).read_text())
    found = by_configuration(content["results"])
    known = kernels_of(content["versions"]["triton"])
    assert (
        found == by_configuration(known)
        if known
        else not any(row["stack_bytes"] or row["spill_bytes"] for row in found.values())
    )
