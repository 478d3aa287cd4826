"""Training as torch's own parts make it of several processes: sharing changes no bit of it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from shared import OPTIONS, end_of
from streams import assert_same_bits, backends
from torch.nn.parallel import DistributedDataParallel

from soap_fast import SOAP

STEPS = 7


class Model(torch.nn.Module):
    """Three layers, of which the middle one is left out in some steps by some ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, middle: bool) -> torch.Tensor:
        y = self.first(x).tanh()
        return self.last(self.middle(y) if middle else y)


def train(group, backend, sharding, *, accumulate=False, scaled=False, poisoned=False):
    """What a run of DistributedDataParallel ends with on this rank; "overlap" is of "refresh"."""
    network = DistributedDataParallel(Model(), process_group=group, find_unused_parameters=True)
    sharing = {} if sharding == "none" else {"sharding": sharding, "process_group": group}
    if sharding == "overlap":
        sharing.update(sharding="refresh", overlap=True)
    optimizer = SOAP(network.parameters(), backend=backend, **OPTIONS, **sharing)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(2 if accumulate else 1):
            seed = 100 * step + 10 * part + group.rank()
            batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
            if poisoned and (step, group.rank()) == (3, 1):
                batch[0, 0] = torch.nan
            middle = step not in (2, 3) and (step != 4 or group.rank() == 0)
            last = part == 1 or not accumulate
            with nullcontext() if last else network.no_sync():
                scaler.scale(network(batch, middle).square().mean()).backward()
        scaler.unscale_(optimizer)
        if not poisoned:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    skipped = optimizer.stats()["skipped"]
    optimizer.consolidate_state_dict()
    return end_of(list(network.parameters()), optimizer), skipped


def both(group, backend, options):
    ways = ("none", "refresh", "overlap", "state")
    return [train(group, backend, sharding, **options) for sharding in ways]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": True}, {"scaled": True}, {"poisoned": True}], ids=str
)
def test_sharing_changes_no_bit(ranks, count, backend, options):
    found = ranks(count, both, backend, options)
    for alone, shared, overlapped, owned in found:
        assert_same_bits(shared, alone)
        assert_same_bits(overlapped, alone)
        assert_same_bits(owned[0], alone[0])
        assert_same_bits(alone, found[0][0])
    skipped = sum(found[0][0][1].values())
    assert (skipped > 0) == bool(options.get("poisoned"))
    assert skipped == sum(sum(owned[1].values()) for *_, owned in found)  # each by its owner
