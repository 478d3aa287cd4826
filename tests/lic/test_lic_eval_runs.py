"""Finished runs: which are compared with which, under what names, and to Adam's loss."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bench.files import BadInput
from bench.lic.evaluation import runs as roles
from bench.lic.evaluation.curves import first_at, to_adams_loss
from bench.lic.evaluation.runs import Run, group
from bench.lic.training import Config


def config(optimizer: str, **other: Any) -> Config:
    fields = {"lam": 0.01, "lr": 1e-3, "steps": 3, "batch": 1, "crop": 64, "images": "given"}
    return Config(model="hyperprior", factor=0.05, optimizer=optimizer, **{**fields, **other})


def finished(optimizer: str, losses: list[float], threads: int = 1, **other: Any) -> Run:
    """A run with an evaluation after each 10 steps of 0.5 seconds."""
    curve = [
        {"step": 10 * n, "seconds": 5.0 * n, "rd_loss": loss}
        for n, loss in enumerate(losses, start=1)
    ]
    summary = {
        "curve": curve,
        "steps": 10 * len(losses),
        "seconds": 5.0 * len(losses),
        "rd_loss": losses[-1],
        "peak_memory": 100 if optimizer == "adam" else 250,
        "peak_memory_of": "optimizer state",
        "config": config(optimizer, threads=threads, **other).as_dict(),
    }
    name = f"{optimizer} {losses} {threads} {other}"
    versions = {"torch": "2", "soap_fast": "1", "numpy": "2"}
    return Run(Path(name), summary, {"processor": "one", "gpu": None}, versions)


def test_the_first_evaluation_no_worse_than_adams_last_counts() -> None:
    adam, soap = finished("adam", [9, 7, 5, 4]), finished("soap_fast", [8, 4, 5, 3])
    (together,) = group([soap, adam])
    own, row = to_adams_loss(together)
    assert (own["variant"], own["steps"], own["memory_ratio"]) == ("adam", 40, 1.0)
    assert (row["steps"], row["steps_ratio"]) == (20, 0.5)
    assert (row["seconds"], row["seconds_ratio"]) == (10.0, 0.5)
    assert row["memory_ratio"] == 2.5
    assert first_at(adam.summary["curve"], 3.9) is None


def test_times_of_different_machines_are_not_compared() -> None:
    adam, soap = finished("adam", [9, 4]), finished("soap_fast", [4, 3], threads=2)
    (together,) = group([adam, soap])
    _, row = to_adams_loss(together)
    assert row["steps"] == 10
    assert row["seconds"] is None
    assert row["clock"] == "threads 2 and 1"


def test_runs_are_compared_with_adam_of_their_own_seed_and_lambda() -> None:
    runs = [finished("adam", [9, 4]), finished("adam", [9, 2], seed=1)]
    runs += [finished("soap_fast", [4, 3]), finished("soap_fast", [4, 3], seed=1)]
    runs += [finished("soap_fast", [1, 1], lam=0.5)]
    (together,) = group(runs)
    rows = [row for row in to_adams_loss(together) if row["variant"] != "adam"]
    assert [(row["seed"], row["steps"]) for row in rows] == [(0, 10), (1, None)]


def test_other_images_or_steps_make_another_group() -> None:
    runs = [finished("adam", [9, 4]), finished("soap_fast", [9, 4], images="other")]
    first, second = group([*runs, finished("soap_fast", [8, 3])])
    assert first.name.endswith("images given")
    assert second.name.endswith("images other")
    assert [len(first.runs), len(second.runs)] == [2, 1]
    assert to_adams_loss(second) == []


def test_frequencies_of_one_optimizer_are_curves_of_their_own() -> None:
    runs = [finished("soap_fast", [1], precondition_frequency=f) for f in (5, 10)]
    (together,) = group([*runs, finished("adam", [1]), finished("adam", [2], lam=0.5)])
    assert list(together.variants()) == [
        "adam",
        "soap_fast (frequency 5)",
        "soap_fast (frequency 10)",
    ]


def test_every_field_of_a_config_has_one_role() -> None:
    of_roles = [*roles.COMPARED, *roles.TIMED, *roles.UNIMPORTANT, *roles.SETTING]
    assert sorted(of_roles) == sorted(field.name for field in fields(Config))


def test_other_rates_at_one_lambda_and_other_precisions_are_variants() -> None:
    adams = [finished("adam", [2], lr=lr, amp=amp) for lr in (1e-3, 2e-3) for amp in (None, "bf16")]
    (together,) = group([*adams, finished("soap_fast", [1])])
    assert list(together.variants()) == [
        "adam (lr 0.001, precision float32)",
        "adam (lr 0.001, precision bf16)",
        "adam (lr 0.002, precision float32)",
        "adam (lr 0.002, precision bf16)",
        "soap_fast (precision float32)",
    ]
    assert together.anchors() == list(together.variants())[:4]


def test_a_rate_of_its_own_for_each_lambda_is_one_curve() -> None:
    runs = [finished("adam", [2], lr=lr, lam=lam) for lr, lam in ((1e-3, 0.01), (2e-3, 0.02))]
    (together,) = group(runs)
    assert list(together.variants()) == ["adam"]


def test_two_runs_of_one_variant_lambda_and_seed_are_refused() -> None:
    with pytest.raises(BadInput, match=r"same run, adam of lambda 0\.01 and seed 0; leave"):
        group([finished("adam", [2]), finished("adam", [3])])
    with pytest.raises(BadInput, match="apart from threads; leave one out"):
        group([finished("adam", [2]), finished("adam", [2], threads=2)])


def test_the_best_of_several_adams_is_the_one_to_reach() -> None:
    runs = [finished("adam", [9, 4], lr=1e-3), finished("adam", [9, 3], lr=2e-3)]
    (together,) = group([*runs, finished("soap_fast", [4, 3])])
    row = next(row for row in to_adams_loss(together) if row["variant"] == "soap_fast")
    assert (row["adam"], row["steps"]) == (runs[1].name, 20)


def test_runs_of_fewer_steps_are_compared_where_that_is_asked_for() -> None:
    adam = finished("adam", [9, 8, 6, 5], steps=40, schedule="multistep", milestones=(30,))
    soap = finished("soap_fast", [6, 5], steps=20, schedule="multistep", milestones=(15,))
    assert [made.name for made in group([adam, soap])] == [
        "hyperprior x 0.05, steps 40, milestones [30]",
        "hyperprior x 0.05, steps 20, milestones [15]",
    ]
    (together,) = group([adam, soap], ("steps",))
    assert together.name == "hyperprior x 0.05"
    assert list(together.variants()) == ["adam (steps 40)", "soap_fast (steps 20)"]
    row = to_adams_loss(together)[1]
    assert (row["steps"], row["steps_ratio"]) == (20, 0.5)


def test_a_diverged_run_reaches_nothing_and_is_no_goal() -> None:
    adam, soap = finished("adam", [9, 4]), finished("soap_fast", [4, 1])
    soap.summary.update(diverged=True)
    (together,) = group([adam, soap])
    assert soap.diverged
    assert to_adams_loss(together)[1]["steps"] is None
    adam.summary["rd_loss"] = None
    assert adam.diverged
    assert to_adams_loss(together) == []


def test_seconds_of_another_torch_are_not_compared() -> None:
    adam, soap = finished("adam", [9, 4]), finished("soap_fast", [4, 3])
    soap.versions["torch"] = "3"
    (together,) = group([adam, soap])
    row = to_adams_loss(together)[1]
    assert row["seconds"] is None
    assert row["clock"] == "version of torch 3 and 2"
