"""Image compression models and the parts they are made of, one file each.

A model takes images [B, 3, H, W] in [0, 1], H and W multiples of `model.stride`, and returns a
`Compressed`; `model.aux_loss()` fits the quantiles, and nothing else reaches those. In training
mode rounding is replaced as `bounds` describes; in evaluation mode everything is rounded.
`build` makes one by its name, with all widths multiplied by a factor: 1 is the published model.
"""

from bench.lic.models.compressed import Compressed
from bench.lic.models.hyperprior import MeanScaleHyperprior
from bench.lic.models.model import Model
from bench.lic.models.registry import MODELS, build, stride

__all__ = ["MODELS", "Compressed", "MeanScaleHyperprior", "Model", "build", "stride"]
