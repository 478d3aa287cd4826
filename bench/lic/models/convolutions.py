"""Convolutions as all models take them: odd kernels, padded so that only strides change sides."""

from __future__ import annotations

from torch import nn


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """Convolution that divides the sides by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int, *, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution that multiplies the sides by `stride`."""
    return nn.ConvTranspose2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=kernel // 2,
        output_padding=stride - 1,
    )


def depthwise(channels: int, kernel: int, *, bias: bool = True) -> nn.Conv2d:
    """Convolution of every channel by itself."""
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias)


def sub_pixel(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution to four times the channels, which become the pixels of doubled sides."""
    return nn.Sequential(conv(inputs, 4 * outputs, 3), nn.PixelShuffle(2))
