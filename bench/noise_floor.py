"""`python -m bench.noise_floor`: what the noise floor does to drift, to quality and to a step.

Drift is what weights move that no gradient asks to move, here and by other optimizers. Quality is
that of two small compression models, trained with the floor and without, six seeds each, at the
rates that searches have found. Runs that are there are not repeated. With `--cost` only steps are
timed, with the floor and without, in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from bench import shapes
from bench.command import table
from bench.envelope import write
from bench.optimizers import OURS, Oracle
from bench.step import Stepped
from bench.turns import take_turns
from soap_fast import SOAP

SCALES = (1.0, 100.0, 1e4)
# Model, factor of its widths, steps and rate: as in the demo and in the comparison.
MODELS = (("hyperprior", 0.25, 1200, 0.0048), ("elic", 0.125, 360, 0.0192))
SEEDS = range(6)
Builder = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
FREQUENCY = 10


def optimizers() -> dict[str, Builder]:
    from pytorch_optimizer import SOAP as Public

    plain: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.0}
    return {
        "soap_fast, backend eager": lambda p: SOAP(p, backend="eager", **plain),
        "soap_fast, backend native": lambda p: SOAP(p, backend="native", **plain),
        "the same, noise_floor=0": lambda p: SOAP(p, backend="native", noise_floor=0, **plain),
        "the reference's algorithm": reference,
        "pytorch_optimizer's SOAP": lambda p: Public(p, **plain),
        "torch's Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    }


def reference(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    found = Oracle(params, FREQUENCY)
    found.oracle.lr = 1e-2
    return found


def unused_columns(builder: Builder, scale: float) -> float:
    """Of [16, 8] one column has gradients, 45 calls: the most that another entry moved."""
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.zeros(16, 8))
    optimizer = builder([param])
    for _ in range(45):
        param.grad = torch.zeros(16, 8)
        param.grad[:, 2] = scale * torch.randn(16, generator=generator)
        optimizer.step()
    param.detach()[:, 2] = 0
    return float(param.detach().abs().max())


def across_the_span(builder: Builder, scale: float) -> float:
    """Inputs span 3 of 16 dimensions, 200 calls: how far [8, 16] moved at right angles to them."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    param = torch.nn.Parameter(torch.zeros(8, 16))
    optimizer = builder([param])
    for _ in range(200):
        inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64) @ basis[:, :3].T
        param.grad = (scale * inputs).float()
        optimizer.step()
    return float((param.detach().double() @ basis[:, 3:]).norm())


def drift() -> list[dict[str, Any]]:
    return [
        {"kind": "drift", "case": case.__name__, "optimizer": name, "scale": scale,
         "moved": case(builder, scale)}
        for case in (unused_columns, across_the_span)
        for name, builder in optimizers().items()
        for scale in SCALES
    ]  # fmt: skip


def final_losses(
    model: str, factor: float, steps: int, lr: float, floor: float, out: Path
) -> list[float]:
    """R-D loss on the held-out photo, one for each seed."""
    losses = []
    for seed in SEEDS:
        folder = out / f"{model}-{floor:g}-{seed}"
        result = folder.with_suffix(".json")
        command = [
            sys.executable, "-m", "bench.lic", "train", "--model", model, "--factor", str(factor),
            "--crop", "64", "--steps", str(steps), "--lr", str(lr), "--seed", str(seed),
            "--threads", "1", "--optimizer-option", f"noise_floor={floor:g}",
            "--out", str(folder), "--json", str(result),
        ]  # fmt: skip
        if not result.exists():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        losses.append(json.loads(result.read_text())["results"][0]["rd_loss"])
    return losses


def quality(out: Path) -> list[dict[str, Any]]:
    rows = []
    for model, factor, steps, lr in MODELS:
        for floor in (0.0, 1.0):
            losses = final_losses(model, factor, steps, lr, floor, out)
            rows.append(
                {"kind": "quality", "model": model, "factor": factor, "steps": steps, "lr": lr,
                 "noise_floor": floor, "rd_losses": losses, "rd_loss": mean(losses),
                 "standard_error": stdev(losses) / len(losses) ** 0.5}
            )  # fmt: skip
    return rows


def cost(model: str, periods: int) -> list[dict[str, Any]]:
    """Milliseconds of a CPU step without the floor and with it, and over those without it."""
    inventory = shapes.load(model)
    source = inventory.parameters("cpu")
    runners = []
    for floor in (0.0, 1.0):
        runner = Stepped(OURS, source, inventory.parameters("cpu"), FREQUENCY, None)
        runner.build = partial(with_floor, runner.build, floor)
        runners.append(runner)

    def prepare(call: int) -> None:
        inventory.set_gradients(source, seed=1 + call)

    take_turns(runners, FREQUENCY, periods, inventory.model, prepare)
    without, ours = (runner.times.summary(FREQUENCY) for runner in runners)
    return [
        {"kind": "cost", "shapes": inventory.model, "threads": torch.get_num_threads(),
         "noise_floor": floor, **times,
         "ratio": (times["mean_ms"] or 0.0) / (without["mean_ms"] or 1.0)}
        for floor, times in ((0.0, without), (1.0, ours))
    ]  # fmt: skip


def with_floor(build: Callable[[], torch.optim.Optimizer], floor: float) -> torch.optim.Optimizer:
    optimizer = build()
    for group in optimizer.param_groups:
        group["noise_floor"] = floor
    return optimizer


def tables(rows: list[dict[str, Any]]) -> str:
    drifts = [row for row in rows if row["kind"] == "drift"]
    moved = {(r["optimizer"], r["case"], r["scale"]): r["moved"] for r in drifts}
    names = dict.fromkeys(row["optimizer"] for row in drifts)
    cases = dict.fromkeys(row["case"] for row in drifts)
    lines = [
        [name, *(moved[name, case, scale] for case in cases for scale in SCALES)] for name in names
    ]
    costs = [row for row in rows if row["kind"] == "cost"]
    if costs:
        header = ["shapes", "noise_floor", "plain_ms", "refresh_ms", "mean_ms", "ratio"]
        return table(header, [[row[name] for name in header] for row in costs])
    found = table(["moved, at scale", *(f"{case}, {s:g}" for case in cases for s in SCALES)], lines)
    header = ["model", "noise_floor", "rd_loss", "standard_error"]
    trained = [[row[name] for name in header] for row in rows if row["kind"] == "quality"]
    return f"{found}\n{table(header, trained)}" if trained else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/measured/noise_floor"), help="default: %(default)s")
    add("--runs", type=Path, default=Path("runs/noise_floor"), help="default: %(default)s")
    add("--drift-only", action="store_true", help="train nothing")
    add("--cost", metavar="SHAPES", help="time steps of these shapes instead, see `bench step`")
    add("--periods", type=int, default=3, help="of refreshes, with --cost; default: %(default)s")
    options = parser.parse_args()
    if options.cost:
        rows = cost(options.cost, options.periods)
        write(str(options.out / f"cost_{rows[0]['shapes']}.json"), rows, "noise_floor")
    else:
        rows = drift() + ([] if options.drift_only else quality(options.runs))
        write(str(options.out / "result.json"), rows, "noise_floor")
        (options.out / "table.md").write_text(tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
