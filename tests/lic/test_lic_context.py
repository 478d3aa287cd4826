"""Contexts: what is coded knows only what was coded before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tolerances
import torch
from torch import Tensor, nn

from bench.lic.models import build
from bench.lic.models.context import SLICES, CheckerboardContext, CheckerboardConv
from soap_fast import SOAP

FACTOR = 1 / 16
SIDES = (8, 8)  # of y; one window of TCM's attention


def even(height: int, width: int) -> Tensor:
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


def context(name: str) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Tensor, Tensor]:
    """(y -> decoded and likelihood, a y, the turn in which each of its elements is coded)."""
    torch.manual_seed(0)
    model = build(name, FACTOR).eval()
    for part in model.modules():
        if isinstance(part, CheckerboardConv):
            nn.init.normal_(part.weight, std=0.1)  # masked taps too, as SOAP's updates fill them
    if isinstance(model.context, CheckerboardContext):
        groups = torch.tensor(model.context.groups)
        turn = 2 * torch.arange(len(groups)).repeat_interleave(groups)[:, None, None]
        turn = turn + ~even(*SIDES)
    else:
        turn = torch.arange(SLICES).repeat_interleave(model.context.channels)[:, None, None]
        turn = turn.expand(-1, *SIDES)
    z = 3 * torch.randn(1, len(model.entropy_bottleneck.quantiles), *(side // 4 for side in SIDES))
    y = 3 * torch.randn(1, turn.shape[0], *SIDES)
    return torch.no_grad()(lambda y: model.code(y, z)), y, turn


@pytest.mark.parametrize("name", ["elic", "lalic", "tcm_64", "dcae"])
def test_a_latent_changes_no_distribution_of_its_turn_or_before(name: str) -> None:
    code, y, turn = context(name)
    decoded, likelihood = code(y)
    for now in turn.unique().tolist():
        places = (turn == now).nonzero()
        channel, row, column = places[len(places) // 2].tolist()
        changed = y.clone()
        changed[0, channel, row, column] += 7.0
        other_decoded, other_likelihood = code(changed)
        known = turn <= now
        known[channel, row, column] = False  # its own symbol is another
        assert torch.equal(other_likelihood[0][known], likelihood[0][known])
        assert torch.equal(other_decoded[0][turn < now], decoded[0][turn < now])
        assert other_decoded[0, channel, row, column] != decoded[0, channel, row, column]
        later = turn > now
        assert not later.any() or (other_likelihood != likelihood)[0][later].any()


def test_every_turn_of_a_checkerboard_reads_the_one_before() -> None:
    code, y, turn = context("elic")
    _, likelihood = code(y)
    for now in turn.unique().tolist()[:-1]:
        changed = torch.where(turn == now, y + 3.0, y)
        changes = (code(changed)[1] != likelihood)[0]
        assert changes[turn == now + 1].any()


def test_anchors_do_not_see_the_bias_of_the_spatial_context() -> None:
    torch.manual_seed(0)
    module = build("elic", FACTOR).eval().context
    y, side = 3 * torch.randn(1, 20, *SIDES), torch.randn(1, 24, *SIDES)
    before = module(y, side)[1][0, : module.groups[0]]
    nn.init.constant_(module.spatial_context[0].bias, 9.0)
    after = module(y, side)[1][0, : module.groups[0]]
    anchors = even(*SIDES)
    assert torch.equal(after[:, anchors], before[:, anchors])
    assert not torch.equal(after[:, ~anchors], before[:, ~anchors])


def test_the_first_half_of_what_the_networks_give_is_the_scale() -> None:
    module = build("elic", FACTOR).context
    last = module.entropy_parameters[2][-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([4.0, 0.5]).repeat_interleave(module.groups[2]))
    calls: list[tuple[Tensor, ...]] = []
    module.gaussian.register_forward_pre_hook(lambda part, call: calls.append(call))
    module(torch.randn(1, 20, *SIDES), torch.randn(1, 24, *SIDES))
    _, scale, mean = calls[2]
    assert (scale == 4.0).all()
    assert (mean == 0.5).all()


@pytest.mark.parametrize("noise_floor", [0.0, 1.0])
def test_soap_without_a_floor_writes_to_masked_taps_which_the_convolution_does_not_read(
    noise_floor: float,
) -> None:
    torch.manual_seed(0)
    conv = CheckerboardConv(2, 4)
    masked = conv.mask == 0
    assert masked.sum() == 13
    assert masked[2, 2]
    optimizer = SOAP(
        conv.parameters(), lr=(lr := 1e-2), precondition_frequency=2, noise_floor=noise_floor
    )
    for _ in range(8):
        optimizer.zero_grad()
        (conv(torch.randn(1, 2, 9, 9)) - 1).square().sum().backward()
        assert conv.weight.grad is not None
        assert not conv.weight.grad[..., masked].any()
        optimizer.step()
    written = conv.weight[..., masked].abs().max()
    assert written < tolerances.HELD_BACK * lr if noise_floor else written > 0.1 * lr
    impulse = torch.zeros(1, 2, 9, 9)
    impulse[..., 4, 4] = 1.0
    response = (conv(impulse) - conv(torch.zeros_like(impulse)))[0]
    assert not response[:, even(9, 9)].any()
    assert response[:, ~even(9, 9)].any()


@pytest.mark.parametrize("name", ["tcm_64", "dcae"])
def test_a_slices_correction_is_at_most_half_a_step(name: str) -> None:
    torch.manual_seed(0)
    module = build(name, FACTOR).context
    rounded: list[Tensor] = []
    module.gaussian.register_forward_hook(lambda *call: rounded.append(call[2][0]))
    m = 5 * module.channels
    decoded, _ = module(*(4 * torch.randn(1, m, *SIDES) for _ in range(3)))
    correction = decoded - torch.cat(rounded, 1)
    assert 0 < correction.abs().max() <= 0.5
