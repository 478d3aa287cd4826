"""Diagnostics under DistributedDataParallel: of all processes together, training untouched."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import tolerances
import torch
import torch.distributed as dist

from soap_fast.diagnostics import ActivationStatistics, InterStepScore, intra_step_score

PROCESSES, STEPS = 2, 4


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * step + rank))


def train(wrap, batch_of, group) -> dict:
    """Diagnostics between forward and backward of each step, and what came out in the end."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)
    model = wrap(torch.nn.Sequential(*layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    followed, statistics = InterStepScore(optimizer), ActivationStatistics(model)
    scores = []
    for step in range(STEPS):
        optimizer.zero_grad()
        with statistics:
            y = model(batch_of(step))
        losses = [y.square().mean(), (y - 1).abs().mean()]
        if step:
            found = intra_step_score(optimizer, losses, process_group=group)
            scores.append([found.overall, *found.per_tensor.values()])
        sum(losses).backward()
        optimizer.step()
        followed.update()
    seen = {name.removeprefix("module."): s for name, s in statistics.summary(group).items()}
    return {
        "intra": scores,
        "inter": followed.score().overall,
        "kurtosis": {name: s.kurtosis for name, s in seen.items()},
        "count": {name: s.count for name, s in seen.items()},
        "parameters": [p.flatten().tolist() for p in model.parameters()],
    }


def of_rank(rank: int, store: str) -> dict:
    where = {"init_method": f"file://{store}", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", timeout=timedelta(seconds=120), **where)
    try:
        wrap = torch.nn.parallel.DistributedDataParallel
        return train(wrap, lambda step: batch(rank, step), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def test_two_processes_find_what_one_finds_with_the_batches_of_both(tmp_path):
    store = str(tmp_path / "store")
    code = f"import json, {__name__} as t; print(json.dumps(t.of_rank(1, {store!r})))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as other:
        first = of_rank(0, store)
        second = json.loads(other.communicate(timeout=120)[0])
    expected = train(
        lambda model: model,
        lambda step: torch.cat([batch(rank, step) for rank in range(PROCESSES)]),
        None,
    )
    for one in (first, second):
        assert one["count"] == expected["count"]
        assert one["kurtosis"] == pytest.approx(expected["kurtosis"], rel=tolerances.PROCESSES)
        assert one["inter"] == pytest.approx(expected["inter"], abs=tolerances.PROCESSES)
        for key in ("intra", "parameters"):
            for values, truth in zip(one[key], expected[key], strict=True):
                assert values == pytest.approx(truth, abs=tolerances.PROCESSES)
    assert first == second
