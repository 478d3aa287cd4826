"""Every model by the name that the command line knows it by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.files import BadInput
from bench.lic.models.dcae import DCAE
from bench.lic.models.elic import ELIC
from bench.lic.models.foreign import Foreign, build_foreign
from bench.lic.models.hyperprior import MeanScaleHyperprior
from bench.lic.models.lalic import LALIC
from bench.lic.models.model import Model
from bench.lic.models.tcm import TCM
from bench.lic.models.widths import scaled

MODELS: dict[str, Callable[[float], Model]] = {
    "elic": ELIC,
    "tcm_64": partial(TCM, 64),
    "tcm_128": partial(TCM, 128),
    "lalic": LALIC,
    "dcae": DCAE,
    "hyperprior": lambda factor: MeanScaleHyperprior(scaled(192, factor, 2)),
}


def build(name: str, factor: float = 1.0) -> Model | Foreign:
    """The model `name` with all its widths multiplied by `factor`; or another's, of any package.

    Raises:
        BadInput: there is no such model.
    """
    if ":" in name:
        if factor != 1:
            raise BadInput(f"--factor shrinks the models here, not {name}; leave it out")
        return build_foreign(name)
    if name not in MODELS:
        raise BadInput(f"no model {name!r}: take {', '.join(MODELS)}, or package.module:Class")
    return MODELS[name](factor)


def stride(name: str, factor: float = 1.0) -> int:
    """Sides of images are multiples of it."""
    with torch.device("meta"):
        return build(name, factor).stride
