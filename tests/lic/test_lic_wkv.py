"""Bidirectional WKV against its definition, in loops and float64."""

from __future__ import annotations

import pytest
import tolerances
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.lic.models.lalic import SpatialMix, bidirectional_wkv

DOUBLE = torch.float64


def by_definition(decay: Tensor, boost: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Token by token; the largest exponent of each sum is taken out of it, as in a softmax."""
    tokens = key.shape[-1]
    w, u = decay / tokens, boost / tokens  # [C]
    outputs = []
    for t in range(tokens):
        exponents = [
            u + key[..., i] if i == t else key[..., i] - w * (abs(t - i) - 1) for i in range(tokens)
        ]
        weights = torch.stack(exponents, -1).softmax(-1)  # [B, C, T]
        outputs.append((weights * value).sum(-1))
    return torch.stack(outputs, -1)


def inputs(tokens: int, spread: float = 1.0, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    """decay, boost, key, value of 2 sequences of 5 channels; training starts at spread 1."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(5,), (5,), (2, 5, tokens), (2, 5, tokens)]
    values = [torch.randn(shape, generator=generator, dtype=DOUBLE) for shape in shapes]
    values[0] *= spread
    values[2] *= spread
    return [x.to(dtype).requires_grad_() for x in values]


@pytest.mark.parametrize("tokens", [1, 2, 3, 33])
def test_values_and_gradients_are_those_of_the_definition(tokens: int) -> None:
    arguments = inputs(tokens)
    ours, loop = bidirectional_wkv(*arguments), by_definition(*arguments)
    assert torch.allclose(ours, loop, rtol=0, atol=tolerances.WKV_64)
    weights = torch.randn(ours.shape, dtype=DOUBLE)
    got = torch.autograd.grad((ours * weights).sum(), arguments, retain_graph=True)
    expected = torch.autograd.grad((loop * weights).sum(), arguments, materialize_grads=True)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerances.WKV_GRADIENT_64)


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_float32_keeps_its_accuracy_with_keys_far_apart(spread: float) -> None:
    """Spread 20 has weights that differ by e^100: sums would overflow without a shift."""
    exact = inputs(64, spread)
    single = [x.detach().float().requires_grad_() for x in exact]
    ours, loop = bidirectional_wkv(*single), by_definition(*exact)
    allowed = tolerances.WKV * spread
    assert torch.allclose(ours.to(DOUBLE), loop, rtol=0, atol=allowed)
    got = torch.autograd.grad(ours.square().sum(), single)
    expected = torch.autograd.grad(loop.square().sum(), exact)
    for one, other in zip(got, expected, strict=True):
        scale = other.abs().max().item()
        assert torch.allclose(one.to(DOUBLE), other, rtol=0, atol=tolerances.WKV * spread * scale)


def test_a_distribution_that_one_token_dominates_is_its_value() -> None:
    decay, boost, key, value = inputs(16, dtype=torch.float32)
    key = key.detach()
    key[..., 5] = 200.0  # e^200 is beyond float32
    y = bidirectional_wkv(decay, boost, key, value)
    assert torch.allclose(y, value[..., 5:6].expand_as(y), **tolerances.ALLCLOSE)


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operators_does_not_grow_with_the_tokens() -> None:
    counts = []
    for tokens in (4, 512):
        arguments = inputs(tokens)
        with Operators() as operators:
            bidirectional_wkv(*arguments).sum().backward()
        counts.append(operators.count)
    assert counts[0] == counts[1]


def test_pixels_are_tokens_in_raster_order() -> None:
    torch.manual_seed(0)
    mix, x = SpatialMix(3).to(DOUBLE), torch.randn(2, 4, 5, 3, dtype=DOUBLE)
    tokens = x.reshape(2, 20, 3)
    key, value = (project(tokens).transpose(1, 2) for project in (mix.key, mix.value))
    attended = by_definition(mix.decay, mix.boost, key, value).transpose(1, 2)
    expected = mix.out(torch.sigmoid(mix.receptance(tokens)) * attended)
    assert torch.allclose(mix(x).reshape(2, 20, 3), expected, **tolerances.LAYERS_64)
