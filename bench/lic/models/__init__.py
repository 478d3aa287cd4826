"""Image compression models, a file each, and the parts that they share, a file for each subject.

A model takes images [B, 3, H, W] in [0, 1], H and W multiples of `model.stride`, and returns a
`Compressed`; `model.aux_loss()` fits the quantiles, and nothing else reaches those. In training
mode rounding is replaced as `entropy` describes; in evaluation mode everything is rounded.
`build` makes one by its name, with all widths multiplied by a factor: 1 is the published model.
"""

from bench.lic.models.hyperprior import MeanScaleHyperprior
from bench.lic.models.model import Compressed, Model
from bench.lic.models.registry import MODELS, build, stride

__all__ = ["MODELS", "Compressed", "MeanScaleHyperprior", "Model", "build", "stride"]
