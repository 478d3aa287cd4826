"""The photographs that come with scikit-image, the default where no folder is named."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from bench.files import BadInput
from bench.lic.data.decoding import decode

NAME = "scikit-image's photos"

# Colour photographs inside the scikit-image wheel. Read as files: `skimage.data` would download
# what it does not find. motorcycle_right, nearly the same picture as the left one, is left out.
TRAINING = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")
HELD_OUT = ("coffee.png",)


def training() -> list[tuple[str, Tensor]]:
    """Names and photos  # uint8 [3, height, width]."""
    return [(name, _read(name)) for name in TRAINING]


def held_out() -> list[tuple[str, Tensor]]:
    return [(name, _read(name)) for name in HELD_OUT]


def _read(name: str) -> Tensor:
    spec = find_spec("skimage")  # found, not imported: that takes a second
    if spec is None or spec.origin is None:
        raise BadInput("scikit-image, whose photos are the default, is missing; name a --data DIR")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise BadInput(f"this scikit-image does not ship {name}; name a --data DIR")
    return decode(str(path)).contiguous()
