"""`python -m bench.lic compare`: the plan, a tiny comparison, and going on with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.lic.__main__ import main
from bench.lic.comparison import runner
from bench.lic.comparison.plan import CPU, PAPER, SEARCH_SEED, runs, search_config, variants
from bench.lic.optimizers import one_algorithm
from bench.lic.style import write_page
from bench.lic.training import Training

RATES = {"adam": 1e-3, "adam_soap_betas": 5e-4, "soap_fast": 2e-3, "pytorch_optimizer": 3e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(3):
        pixels = generator.integers(256, size=(64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def tiny(data: Path, work: Path, *more: str) -> list[str]:
    sizes = ["--factor=0.05", "--steps=3", "--batch=1", "--seeds=2"]
    search = ["--grid", "1e-3", "--search-seeds=1"]
    return ["compare", "--models=elic", *sizes, *search, f"--data={data}", f"--work={work}", *more]


def test_every_seed_has_every_variant_once_and_another_one_first() -> None:
    preset = replace(CPU, frequencies=(5, 20))
    planned = [config for _, config in runs(preset, CPU.trials[0], RATES, {})]
    count = len(variants(preset))
    assert len(planned) == 4 * count == 28
    blocks = [planned[start : start + count] for start in range(0, len(planned), count)]
    for seed, block in enumerate(blocks):
        assert {config.seed for config in block} == {seed}
        assert len({(c.optimizer, c.precondition_frequency, c.lr) for c in block}) == count
    firsts = [(block[0].optimizer, block[0].precondition_frequency) for block in blocks]
    assert len(set(firsts)) == 4
    frequencies = {c.precondition_frequency for c in planned if c.optimizer == "soap_fast"}
    assert frequencies == {5, 10, 20}


def test_what_is_one_algorithm_is_also_run_at_soap_fasts_rate() -> None:
    assert [variant.name for variant in variants(CPU)] == [
        *("adam", "adam_soap_betas", "soap_fast_10", "pytorch_optimizer_10"),
        "pytorch_optimizer_10_at_rate_of_soap_fast",
    ]
    planned = dict(runs(replace(CPU, seeds=1), CPU.trials[0], RATES, {}))
    rates = {name.partition("_lambda")[0]: config.lr for name, config in planned.items()}
    assert rates.pop("pytorch_optimizer_10_at_rate_of_soap_fast") == RATES["soap_fast"]
    assert rates == {
        "adam": RATES["adam"],
        "adam_soap_betas": RATES["adam_soap_betas"],
        "soap_fast_10": RATES["soap_fast"],
        "pytorch_optimizer_10": RATES["pytorch_optimizer"],
    }
    equal = {**RATES, "pytorch_optimizer": RATES["soap_fast"]}
    assert len(list(runs(replace(CPU, seeds=1), CPU.trials[0], equal, {}))) == 4, "no run twice"
    assert not one_algorithm("adam", "adam_soap_betas")
    assert not one_algorithm("torch.optim:SGD", "torch.optim:SGD")


def test_where_no_rate_is_searched_all_have_one_rate_anyway() -> None:
    names = [variant.name for variant in variants(replace(PAPER, optimizers=CPU.optimizers))]
    assert names == ["adam", "adam_soap_betas", "soap_fast_10", "pytorch_optimizer_10"]


def test_a_frequency_named_twice_or_compared_anyway_is_one_variant() -> None:
    once, twice = (replace(CPU, frequencies=of) for of in ((5, 20), (5, 10, 20, 5)))
    assert variants(twice) == variants(once)


def test_rates_are_searched_alike_by_runs_as_those_compared_but_for_their_seeds() -> None:
    for trial in CPU.trials:
        compared = {config.optimizer: config for _, config in runs(CPU, trial, RATES, {})}
        for name in CPU.optimizers:
            config = search_config(CPU, trial, name, {})
            apart = {"lr", "seed", "evaluate_every"}
            for field, value in compared[name].as_dict().items():
                assert field in apart or config.as_dict()[field] == value, field
            assert config.steps == config.evaluate_every == trial.steps
            assert config.seed == SEARCH_SEED >= CPU.seeds


def test_the_papers_plan_is_printed_and_needs_its_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "--preset=paper", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for part in ("lalic x 1", "1,774,305", "0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483", "COCO"):
        assert part in printed
    assert len(PAPER.trials) == 4
    assert main(["compare", "--preset=paper"]) == 2
    assert "needs --data DIR with COCO 2017" in capsys.readouterr().err


def test_a_tiny_comparison_is_reported_and_not_repeated(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    more = ("--frequencies", "2", "--optimizers=adam,soap_fast,pytorch_optimizer")
    arguments = tiny(data, work, *more)
    assert main([*arguments, f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "images skipped: 1, the first broken.png" in printed
    assert "left out here: tcm_64." in printed
    for title in ("What a step costs", "by the frequency of its refreshes", "too small to show"):
        assert title in printed
    write_page(out / "printed.md", printed.rstrip())
    assert (out / "printed.md").read_text() in (out / "report.md").read_text()
    assert (out / "losses.png").stat().st_size > 10_000
    rows = json.loads((out / "compare.json").read_text())["results"]
    same = "pytorch_optimizer_10_at_rate_of_soap_fast"
    names = ["adam", "soap_fast_10", "pytorch_optimizer_10", same, "soap_fast_2"]
    found = {row["variant"]: row for row in rows if row["kind"] == "variant"}
    assert list(found) == names
    searches = [row for row in rows if row["kind"] == "search"]
    searched = {row["optimizer"]: row["lr"] for row in searches}
    for row in found.values():
        assert row["seeds"] == 2
        rate_of = "soap_fast" if row["variant"] == same else row["optimizer"]
        assert row["lr"] == searched[rate_of]
        assert row["rd_loss"] == pytest.approx(sum(row["rd_losses"]) / 2)
        assert row["compared"] == 2
    assert found["adam"]["reached"] == 2
    of_runs = [row for row in rows if row["kind"] == "run"]
    assert len(of_runs) == (8 if searched["soap_fast"] == searched["pytorch_optimizer"] else 10)
    assert all({"machine", "versions", "commit"} <= row.keys() for row in of_runs)
    (total,) = (row for row in rows if row["kind"] == "total")
    kept = sorted(folder.name for folder in (work / "elic_0.05").glob("search_*_seed_1000"))
    assert (total["runs"], total["searching_runs"]) == (len(of_runs), len(kept))
    assert total["untimed"] == 0
    assert len(kept) >= 9, "the rate of the grid and two neighbours, of three optimizers"
    for row in searches:
        assert len([name for name in kept if f"_{row['optimizer']}_lr_" in name]) == sum(
            len(one["rd_losses"]) for one in row["tried"]
        )
    assert total["wall_seconds"] > sum(row["seconds"] for row in of_runs)

    trained = []

    class Counted(Training):
        def __init__(self, config, *rest, **more) -> None:
            trained.append(config.optimizer)
            super().__init__(config, *rest, **more)

    monkeypatch.setattr(runner, "Training", Counted)
    lost = work / "elic_0.05" / "adam_lambda_0.013_seed_1"
    before = json.loads((lost / "result.json").read_text())["results"][0]["rd_loss"]
    (lost / "result.json").unlink()
    of_search = work / "elic_0.05" / "search_soap_fast_lr_0.001_seed_1000" / "result.json"
    of_search.unlink()
    assert main([*arguments, f"--out={tmp_path / 'again'}"]) == 0
    assert trained == ["soap_fast", "adam"]
    again = json.loads((tmp_path / "again" / "compare.json").read_text())["results"]
    tried = [row["tried"] for row in rows if row["kind"] == "search"]
    assert [row["tried"] for row in again if row["kind"] == "search"] == tried
    assert json.loads((lost / "result.json").read_text())["results"][0]["rd_loss"] == before

    capsys.readouterr()
    assert main([*arguments, "--steps=4"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    changes = "steps is 4, was 3; evaluate_every is 4, was 3"
    assert f"is of another comparison: {changes}; name another --work" in said
    assert not list(work.rglob("checkpoint.pt"))


def test_wrong_changes_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for change, reason in (
        ("--models=lalic", "the preset has elic, tcm_64"),
        ("--frequencies=0", "--frequencies are positive"),
        (f"--data={tmp_path / 'nowhere'}", "no such folder"),
    ):
        assert main(["compare", f"--work={tmp_path}", change]) == 2
        assert reason in capsys.readouterr().err


def test_a_missing_optimizer_is_named_and_the_others_compared(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    only = ("--optimizers=adam,pytorch_optimizer", "--seeds=1", "--frequencies", "--no-search")
    assert main(tiny(data, tmp_path, *only)) == 0
    assert "pytorch_optimizer is missing" in capsys.readouterr().out
    rows = json.loads((tmp_path / "compare.json").read_text())["results"]
    assert {row["optimizer"] for row in rows if row["kind"] == "variant"} == {"adam"}
