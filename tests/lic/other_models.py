"""Models of others that differ from CompressAI's in one thing each."""

from __future__ import annotations

from typing import Any

import torch
from lic.compressai_like import Autoencoder
from torch import Tensor, nn


class Tables(Autoencoder):
    """Buffers that get their sizes as an evaluation begins, as those of `update()`."""

    def __init__(self) -> None:
        super().__init__()
        self.entropy_bottleneck.register_buffer("_quantized_cdf", torch.IntTensor())
        self.entropy_bottleneck.register_buffer("_offset", None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        if not self.training:
            self.entropy_bottleneck._quantized_cdf = torch.ones(4, 7, dtype=torch.int32)
            self.entropy_bottleneck._offset = torch.full((4,), 3)
        return super().forward(x)


class NoQuantiles(Autoencoder):
    def __init__(self) -> None:
        super().__init__()
        del self.entropy_bottleneck.quantiles

    def aux_loss(self) -> Any:
        return 0


class NoAuxiliaryLoss(Autoencoder):
    def aux_loss(self) -> Any:
        return 0.0


class ListOfLosses(Autoencoder):
    def aux_loss(self) -> Any:
        return [self.entropy_bottleneck.loss(), self.entropy_bottleneck.loss()]


class Nested(Autoencoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        coded = super().forward(x)
        y, z = coded["likelihoods"].values()
        return {**coded, "likelihoods": {"y": [y[:, :1], (y[:, 1:3], [y[:, 3:]])], "z": z}}


class Larger(Autoencoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        coded = super().forward(x)
        return {**coded, "x_hat": nn.functional.pad(coded["x_hat"], (0, 8, 0, 8))}


def double() -> nn.Module:
    return Autoencoder().double()


class Pair(Autoencoder):
    def forward(self, x: Tensor) -> Any:
        return tuple(super().forward(x).values())


class NothingCoded(Autoencoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {**super().forward(x), "likelihoods": {}}


class Named(Autoencoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {**super().forward(x), "likelihoods": {"y": "certain"}}


class TextualLoss(Autoencoder):
    def aux_loss(self) -> Any:
        return "none"


class Frozen(Autoencoder):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class BrokenEvaluation(Autoencoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        if not self.training:
            raise RuntimeError("call update() first")
        return super().forward(x)


class Noted(Autoencoder):
    """A normalisation, whose averages a trial is not to move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return super().forward(self.norm(x))
