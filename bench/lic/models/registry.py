"""Every model by the name that the command line knows it by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.command import BadInput
from bench.lic.models.dcae import DCAE
from bench.lic.models.elic import ELIC
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


def build(name: str, factor: float = 1.0) -> Model:
    """The model `name` with all its widths multiplied by `factor`.

    Raises:
        BadInput: there is no such model.
    """
    if name not in MODELS:
        raise BadInput(f"no model {name!r}: take {', '.join(MODELS)}")
    return MODELS[name](factor)
