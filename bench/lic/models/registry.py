"""Every model by the name that the command line knows it by, models of others among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bench.command import named
from bench.files import BadInput
from bench.lic.models.dcae import DCAE
from bench.lic.models.elic import ELIC
from bench.lic.models.entropy import full_precision
from bench.lic.models.hyperprior import MeanScaleHyperprior
from bench.lic.models.lalic import LALIC
from bench.lic.models.model import Compressed, Model, scaled
from bench.lic.models.tcm import TCM

USUAL_STRIDE = 64


class Foreign(nn.Module):
    """A module whose forward returns {"x_hat": images, "likelihoods": {name: tensor}}.

    It has CompressAI's manners: `aux_loss()`, quantiles named so, `downsampling_factor` (64 if it
    has none), and entropy models that derive from a class `EntropyModel`. Likelihoods may be nested
    in lists and dictionaries; there may be no quantiles, and an `aux_loss()` that is a number or a
    list.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net
        self.stride = int(getattr(net, "downsampling_factor", USUAL_STRIDE))
        for part in net.modules():
            if any(base.__name__ == "EntropyModel" for base in type(part).__mro__):
                part.forward = MethodType(full_precision(type(part).forward), part)

    def forward(self, images: Tensor) -> Compressed:
        """Code and decode images  # [B, 3, H, W] in [0, 1]."""
        coded = self.net(images)
        return Compressed(coded["x_hat"], tuple(flat(coded["likelihoods"])))

    def aux_loss(self) -> Tensor:
        """The sum of all that the module gives; without a gradient where that is a number."""
        return sum(flat(self.net.aux_loss()), torch.zeros((), device=self._device()))

    def load_state_dict(self, state_dict: Mapping[str, Any], *given: Any, **more: Any) -> Any:
        """Buffers take the sizes of the state: `update()` of CompressAI makes tables of some.

        Parameters do not.
        """
        for name, value in state_dict.items():
            place, _, key = name.rpartition(".")
            try:
                owner = self.get_submodule(place)
            except AttributeError:  # no such module: torch says so below
                continue
            if key in owner._buffers and isinstance(value, Tensor):
                held = owner._buffers[key]
                if held is None or held.shape != value.shape:
                    kind = value.dtype if held is None else held.dtype
                    device = self._device() if held is None else held.device
                    owner._buffers[key] = torch.empty(value.shape, dtype=kind, device=device)
        return super().load_state_dict(state_dict, *given, **more)

    def _device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def flat(nested: Any) -> Iterator[Any]:
    """What dictionaries and lists in each other hold, in order."""
    if isinstance(nested, Mapping):
        nested = tuple(nested.values())
    if isinstance(nested, list | tuple):
        for part in nested:
            yield from flat(part)
    else:
        yield nested


def build_foreign(text: str) -> Foreign:
    """What `package.module:Class` makes without arguments.

    Raises:
        BadInput: there is no such class, or it makes no module of this kind, or not in float32.
    """
    try:
        net = named(text)()
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"--model: {error}") from None
    except Exception as error:  # whatever another's constructor raises
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadInput(
            f"--model {text} cannot be made without arguments ({reason}); name a function of your "
            "own that returns the model"
        ) from None
    if not (isinstance(net, nn.Module) and callable(getattr(net, "aux_loss", None))):
        raise BadInput(f"--model {text} is no module with an aux_loss(), as CompressAI's have it")
    other = {str(p.dtype) for p in net.parameters() if p.is_floating_point()} - {"torch.float32"}
    if other:
        raise BadInput(
            f"--model {text} has parameters of {', '.join(sorted(other))}, but images are float32; "
            "name a function of your own that returns it as float()"
        )
    return Foreign(net)


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
