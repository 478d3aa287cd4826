"""Models of others, CompressAI's above all, in the form of ours."""

from __future__ import annotations

import argparse
from types import MethodType
from typing import Any

from torch import Tensor, nn

from bench.command import BadInput
from bench.lic.models.compressed import Compressed
from bench.lic.models.full_precision import full_precision
from bench.named import named

USUAL_STRIDE = 64


class Foreign(nn.Module):
    """A module whose forward returns {"x_hat": images, "likelihoods": {name: tensor}}.

    It has CompressAI's manners: `aux_loss()`, quantiles named so, `downsampling_factor` (64 if it
    has none), and entropy models that derive from a class `EntropyModel`.
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
        return Compressed(coded["x_hat"], tuple(coded["likelihoods"].values()))

    def aux_loss(self) -> Tensor:
        return self.net.aux_loss()


def build_foreign(text: str) -> Foreign:
    """What `package.module:Class` makes without arguments.

    Raises:
        BadInput: there is no such class, or it makes no module of this kind.
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
    return Foreign(net)
