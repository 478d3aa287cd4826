"""An image as bytes and back, by a range coder: what the estimated bits are worth in a file.

Coder and decoder walk through the latents in the order of the model's context. In each turn the
model gives mean and scale of what comes next, from what both of them know; the coder writes those
symbols, the decoder reads them, and both add them to what they know. So both compute the very same
numbers: an unequal last bit in one scale would spoil all that follows. For that reason the bytes
are for the machine, the number of threads and the torch that wrote them.

The coder is `constriction`'s (Bamler 2022, arXiv 2201.01741).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.lic.models.context import CheckerboardContext, SliceContext
from bench.lic.models.entropy import SCALE_BOUND, GaussianConditional
from bench.lic.models.model import Model

HEADER = struct.Struct("<HH")  # height and width in pixels
# Of a symbol. The coder gives each of the 2047 at least 2^-24: 0.0002 bits a symbol are lost to it.
LIMIT = 1023

# (which elements [B, M, H/16, W/16], their means, their scales) -> their symbols, all rounded
Exchange = Callable[[Tensor, Tensor, Tensor], Tensor]


class Latents(NamedTuple):
    """Integers: the distances of z from its channels' medians and of y from its means."""

    z: Tensor  # [1, N, H/64, W/64] int32
    y: Tensor  # [1, M, H/16, W/16] int32


@torch.no_grad()
def encode(model: Model, image: Tensor) -> tuple[bytes, Latents]:
    """Code one image  # [1, 3, H, W] in [0, 1], of sides that the model takes.

    Returns the bytes, and the symbols that are in them.

    Raises:
        ImportError: the package constriction is missing.
        ValueError: a symbol is beyond LIMIT, as of a model that has diverged.
    """
    y = model.analysis(image)
    z_symbols = (model.hyper_analysis(y) - _medians(model)).round()
    y_symbols = torch.zeros_like(y)
    coded: list[tuple[Tensor, Tensor]] = []  # symbols and scales of every turn

    def quantise(turn: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        y_symbols[turn] = (y[turn] - mean).round()
        coded.append((y_symbols[turn], scale))
        return y_symbols[turn]

    _walk(model, z_symbols, y.shape, quantise)
    latents = Latents(z_symbols.int(), y_symbols.int())
    if (largest := max(int(symbols.abs().max()) for symbols in latents)) > LIMIT:
        raise ValueError(f"a symbol of {largest} is beyond {LIMIT}: has this model diverged?")
    coder = _constriction().stream.queue.RangeEncoder()
    for channel, distribution in zip(latents.z[0], _z_distributions(model), strict=True):
        coder.encode(_numpy(channel + LIMIT), distribution)
    for symbols, scale in coded:
        coder.encode(_numpy(symbols), _y_distributions(), *_parameters(scale))
    header = HEADER.pack(*image.shape[2:])
    return header + coder.get_compressed().astype("<u4").tobytes(), latents


@torch.no_grad()
def decode(model: Model, data: bytes) -> tuple[Tensor, Latents]:
    """What `encode` coded: the image  # [1, 3, H, W] in [0, 1], and its symbols."""
    height, width = HEADER.unpack_from(data)
    words = np.frombuffer(data, "<u4", offset=HEADER.size).astype(np.uint32)
    coder = _constriction().stream.queue.RangeDecoder(words)
    device = _medians(model).device
    rows, columns = height // 64, width // 64
    channels = [
        coder.decode(distribution, rows * columns)  # [rows * columns] int32
        for distribution in _z_distributions(model)
    ]
    z_symbols = torch.from_numpy(np.stack(channels) - LIMIT).view(1, -1, rows, columns).to(device)
    shape = torch.Size((1, _channels_of_y(model), 4 * rows, 4 * columns))
    y_symbols = torch.zeros(shape, dtype=torch.int32, device=device)

    def read(turn: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        symbols = coder.decode(_y_distributions(), *_parameters(scale))  # [turn.sum()] int32
        y_symbols[turn] = torch.from_numpy(symbols).to(device)
        return y_symbols[turn].to(mean.dtype)

    decoded = _walk(model, z_symbols.float(), shape, read)
    return model.synthesis(decoded).clamp(0, 1), Latents(z_symbols.int(), y_symbols)


def _walk(model: Model, z_symbols: Tensor, shape: torch.Size, exchange: Exchange) -> Tensor:
    """Turn after turn of y  # `shape`; returns what the synthesis gets.

    Elements whose turn has not come are zero, which no earlier distribution depends on: that is
    what makes a context one.
    """
    z = z_symbols + _medians(model)
    known = torch.zeros(shape, device=z.device)
    for turn in turns(model, shape, z.device):
        mean, scale = _distributions(model, known, z)
        known[turn] = mean[turn] + exchange(turn, mean[turn], scale[turn])
    return model.code(known, z)[0]


def turns(model: Model, shape: torch.Size, device: torch.device) -> Iterator[Tensor]:
    """Which elements of y  # `shape`, bool  are coded together, in the order they are coded."""
    context = getattr(model, "context", None)
    _, channels, height, width = shape
    if isinstance(context, CheckerboardContext):
        groups, colours = context.groups, 2
    elif isinstance(context, SliceContext):
        groups, colours = (context.channels,) * (channels // context.channels), 1
    else:
        groups, colours = (channels,), 1
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    colour = (rows + columns) % colours
    start = 0
    for group in groups:
        for now in range(colours):
            turn = torch.zeros(shape, dtype=torch.bool)
            turn[:, start : start + group] = colour == now
            yield turn.to(device)
        start += group


def _distributions(model: Model, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of every element of y  # each [1, M, H/16, W/16], as the model has them.

    A model asks its GaussianConditional group by group; what it asks with is noted on the way.
    """
    asked: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        asked.append((inputs[2], inputs[1]))

    gaussians = [part for part in model.modules() if isinstance(part, GaussianConditional)]
    hooks = [part.register_forward_pre_hook(note) for part in gaussians]
    try:
        model.code(y, z)
    finally:
        for hook in hooks:
            hook.remove()
    means, scales = zip(*asked, strict=True)
    return torch.cat(means, 1), torch.cat(scales, 1)


def _channels_of_y(model: Model) -> int:
    image = _medians(model).new_zeros(1, 3, model.stride, model.stride)
    return int(model.analysis(image).shape[1])


def _medians(model: Model) -> Tensor:
    return model.entropy_bottleneck.quantiles[:, 0, 1].view(1, -1, 1, 1)


def _z_distributions(model: Model) -> Iterator[Any]:
    """For each channel of z the probabilities of the symbols, from -LIMIT to LIMIT."""
    medians = _medians(model)  # [1, N, 1, 1]
    symbols = torch.arange(-LIMIT, LIMIT + 1, device=medians.device)
    table = model.entropy_bottleneck.likelihood(symbols + medians)[0, :, 0]  # [N, 2047]
    for row in table.double().cpu().numpy():
        yield _constriction().stream.model.Categorical(row, perfect=False)


def _y_distributions() -> Any:
    """Gaussians integrated over each of the integers from -LIMIT to LIMIT."""
    return _constriction().stream.model.QuantizedGaussian(-LIMIT, LIMIT)


def _parameters(scale: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of symbols, which are distances from the mean  # each [n] float64."""
    scales = scale.clamp(min=SCALE_BOUND).double().cpu().numpy()
    return np.zeros_like(scales), scales


def _numpy(symbols: Tensor) -> np.ndarray:
    return symbols.flatten().cpu().numpy().astype(np.int32)


def _constriction() -> Any:
    import constriction

    return constriction
