"""The recorded trajectories of the reference optimizer, and how far from them is still the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "data" / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))

# The reference rerun in float64, or with gradients perturbed by 1e-7, ends up to 7e-5 of the
# displacement away; an honest float32 implementation has to stay within seven times that.
TOLERANCE = 5e-4


@dataclass
class Trace:
    """One run of the reference: `grads[t][i]` and `params[t][i]` after call t + 1, float32."""

    kwargs: dict
    init: list[torch.Tensor]
    grads: list[list[torch.Tensor]]
    params: list[list[torch.Tensor]]
    states: dict[int, list[dict]]  # call -> per parameter {step, exp_avg, exp_avg_sq, GG, Q}


def load(case: str) -> Trace:
    numpy = pytest.importorskip("numpy")  # all else of the tests for GPUs does without it
    file = numpy.load(FOLDER / f"{case}.npz")
    meta = json.loads(bytes(file["meta"]).decode())
    count, calls = len(meta["shapes"]), range(1, meta["steps"] + 1)

    def tensor(key: str) -> torch.Tensor:
        return torch.from_numpy(file[key].copy())

    def matrices(prefix: str) -> dict[int, torch.Tensor]:
        keys = [key for key in file.files if key.startswith(prefix)]
        return {int(key.removeprefix(prefix)): tensor(key) for key in keys}

    def state(i: int, t: int) -> dict:
        where = f"p{i}/state{t}"
        return {
            "step": int(file[f"{where}/step"]),
            "exp_avg": tensor(f"{where}/exp_avg"),
            "exp_avg_sq": tensor(f"{where}/exp_avg_sq"),
            "GG": matrices(f"{where}/GG"),
            "Q": matrices(f"{where}/Q"),
        }

    kwargs = meta["kwargs"]
    if "betas" in kwargs:
        kwargs["betas"] = tuple(kwargs["betas"])
    return Trace(
        kwargs=kwargs,
        init=[tensor(f"p{i}/init") for i in range(count)],
        grads=[[tensor(f"p{i}/grad{t}") for i in range(count)] for t in calls],
        params=[[tensor(f"p{i}/param{t}") for i in range(count)] for t in calls],
        states={
            t: [state(i, t) for i in range(count)] for t in calls if f"p0/state{t}/step" in file
        },
    )
