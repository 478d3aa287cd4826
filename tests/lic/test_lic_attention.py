"""Attention of TCM and DCAE, and LALIC's shift, against what defines them, pixel by pixel."""

from __future__ import annotations

import copy
import math

import pytest
import tolerances
import torch
from torch import Tensor, nn

from bench.lic.models.attention import WindowAttention
from bench.lic.models.dcae import DictionaryAttention
from bench.lic.models.lalic import OmniShift
from bench.lic.models.model import ramp, scaled
from bench.lic.models.tcm import Mixture, SwinGate

DOUBLE = torch.float64


def seen_from(pixel: tuple[int, int], sides: tuple[int, int], size: int, shift: int) -> list:
    """Pixels of the same window, which lie on the same side of the map's edge if it wraps.

    Rows and columns above `shift` come round to the last windows of a shifted map.
    """

    def alike(a: int, b: int, side: int) -> bool:
        window_of_a, window_of_b = ((p - shift) % side // size for p in (a, b))
        return window_of_a == window_of_b and (a < shift) == (b < shift)

    return [
        (row, column)
        for row in range(sides[0])
        for column in range(sides[1])
        if alike(pixel[0], row, sides[0]) and alike(pixel[1], column, sides[1])
    ]


def window_attention(model: WindowAttention, x: Tensor) -> Tensor:
    """Of one map  # [H, W, C], pixel by pixel and head by head."""
    height, width, channels = x.shape
    size, depth = model.size, channels // model.heads
    q, k, v = model.qkv(x).split(channels, dim=-1)  # each [H, W, C]
    attended = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            keys = seen_from((row, column), (height, width), size, size // 2 * model.shifted)
            for head in range(model.heads):
                part = slice(head * depth, (head + 1) * depth)
                logits = torch.stack(
                    [
                        q[row, column, part] @ k[r, c, part] / math.sqrt(depth)
                        + model.table[head, row - r + size - 1, column - c + size - 1]
                        for r, c in keys
                    ]
                )
                values = torch.stack([v[r, c, part] for r, c in keys])
                attended[row, column, part] = logits.softmax(0) @ values
    return model.out(attended)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", [(4, 4), (8, 12)])
def test_window_attention(sides: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    model = WindowAttention(6, heads=3, size=4, shifted=shifted).to(DOUBLE)
    nn.init.normal_(model.table)
    x = torch.randn(2, *sides, 6, dtype=DOUBLE)
    with torch.no_grad():
        expected = torch.stack([window_attention(model, one) for one in x])
        assert torch.allclose(model(x), expected, **tolerances.LAYERS_64)


def test_relative_positions_have_heads_fastest_in_memory_and_so_has_their_gradient() -> None:
    model = WindowAttention(16, heads=8, size=8, shifted=False)
    model(torch.randn(1, 8, 8, 16)).square().sum().backward()
    assert model.table.grad is not None
    for tensor in (model.table, model.table.grad, copy.deepcopy(model).double().table):
        assert (tuple(tensor.shape), tensor.stride()) == ((8, 15, 15), (1, 120, 8))
    assert 0.015 < model.table.std() < 0.025


def test_a_mixture_doubles_its_convolutions_skip() -> None:
    mixture = Mixture(2, heads=1, window=4, shifted=False)
    mixture.into, mixture.out, mixture.transformer = nn.Identity(), nn.Identity(), nn.Identity()
    mixture.convolutions.body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    nn.init.zeros_(mixture.convolutions.body[0].weight)
    nn.init.constant_(mixture.convolutions.body[0].bias, 3.0)
    x = torch.randn(1, 4, 4, 4)
    local, wide = x.chunk(2, dim=1)
    expected = torch.cat([3 * local + 3, 2 * wide], 1)
    assert torch.allclose(mixture(x), expected, **tolerances.GDN)


def test_a_swin_gate_has_no_skip_around_it() -> None:
    gate = SwinGate(6, inner=4, heads=2)
    nn.init.zeros_(gate.out.weight)
    bias = gate.out.bias[:, None, None]
    assert torch.allclose(gate(torch.randn(1, 6, 8, 8)), bias, **tolerances.ALLCLOSE)


def test_dictionary_attention_reads_the_normalised_dictionary_itself() -> None:
    torch.manual_seed(0)
    model = DictionaryAttention(3, channels=4, heads=2, outputs=5).to(DOUBLE)
    nn.init.uniform_(model.temperature, 0.5, 2)
    query, entries = torch.randn(1, 2, 3, 4, dtype=DOUBLE), torch.randn(7, 4, dtype=DOUBLE)
    attended = model._attend(query, entries)
    keys = model.key(entries)
    for row in range(2):
        for column in range(3):
            for head in range(2):
                part = slice(2 * head, 2 * head + 2)
                logits = keys[:, part] @ query[0, row, column, part] * model.temperature[head, 0, 0]
                expected = logits.softmax(0) @ entries[:, part]
                found = attended[0, row, column, part]
                assert torch.allclose(found, expected, **tolerances.LAYERS_64)


def test_omni_shift_is_one_kernel_in_evaluation_which_never_has_a_gradient() -> None:
    torch.manual_seed(0)
    shift, x = OmniShift(3).to(DOUBLE), torch.randn(2, 6, 5, 3, dtype=DOUBLE)
    trained = shift(x)
    trained.sum().backward()
    assert shift.merged.grad is None
    assert torch.allclose(shift.eval()(x), trained, **tolerances.LAYERS_64)
    merged = shift.merged.clone()
    with torch.no_grad():
        shift.shifts[2].weight.mul_(2)  # as another step of training, or a checkpoint, would
    assert torch.allclose(shift(x), shift.train()(x), **tolerances.LAYERS_64)
    assert not torch.equal(shift.merged, merged)


def test_ramps_are_those_of_the_published_widths() -> None:
    assert ramp(640, 128, 384) == (469, 384)
    assert ramp(1152, 384, 384) == (896, 640)
    assert ramp(1088, 384, 256) == (853, 618)
    assert ramp(576, 128, 256) == (426, 277)


def test_scaled_widths_are_positive_multiples() -> None:
    assert scaled(9, 1.0, 4) == 9
    assert scaled(192, 0.25) == 48
    assert scaled(144, 0.3, 9) == 45
    assert scaled(16, 0.001, 6) == 6
