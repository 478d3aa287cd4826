"""What all models have in common: an image becomes y, y becomes z, and z says how y is coded."""

from __future__ import annotations

from torch import Tensor, nn

from bench.lic.models.compressed import Compressed
from bench.lic.models.entropy_bottleneck import EntropyBottleneck


class Model(nn.Module):
    """Analysis and synthesis of images, hyper-analysis of y, and `code`, in which models differ.

    Source of the structure: Ballé et al. 2018 (arXiv 1802.01436).
    """

    stride: int  # sides of images are multiples of it
    analysis: nn.Module
    synthesis: nn.Module
    hyper_analysis: nn.Module
    entropy_bottleneck: EntropyBottleneck

    def forward(self, images: Tensor) -> Compressed:
        """Code and decode images  # [B, 3, H, W].

        Raises:
            ValueError: a side that is not a multiple of `stride`.
        """
        self._check(images)
        y = self.analysis(images)  # [B, M, H/16, W/16]
        z = self.hyper_analysis(y)  # [B, N, H/64, W/64]
        z, z_likelihood = self.entropy_bottleneck(z)
        y, y_likelihood = self.code(y, z)
        return Compressed(self.synthesis(y), (y_likelihood, z_likelihood))

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y, knowing the decoded z; returns (what is decoded, its likelihood), as y."""
        raise NotImplementedError

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.aux_loss()

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if not height or not width or height % self.stride or width % self.stride:
            raise ValueError(
                f"images of {height}x{width} pixels: {type(self).__name__} takes sides that are "
                f"multiples of {self.stride}; crop them, or pad them and crop what is decoded"
            )
