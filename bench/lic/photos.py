"""Real photos, split into a part to train on and a part held out, and random crops of the first."""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.command import BadInput

# Colour photographs inside the scikit-image wheel. Read as files: `skimage.data` would download
# what it does not find. motorcycle_right, nearly the same picture as the left one, is left out.
SHIPPED_TRAINING = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")
SHIPPED_HELD_OUT = ("coffee.png",)

HOLD_OUT_ONE_IN = 10  # photos of a folder, in order of path
HELD_OUT_LIMIT = 8  # keeps an evaluation cheap in a large folder
HELD_OUT_SIDE = 512  # longest side that is evaluated, from the middle of the photo


class Photos(NamedTuple):
    """uint8 photos [3, height, width] and the files that could not be used, with reasons."""

    training: list[Tensor]
    held_out: list[Tensor]  # sides are multiples of the model's stride
    skipped: list[str]

    def fingerprint(self) -> str:
        """Eight hex digits that change with any pixel; crops can only be repeated from the same."""
        crc = 0
        for photo in (*self.training, *self.held_out):
            crc = zlib.crc32(photo.numpy().tobytes(), crc)
        return f"{crc:08x}"


def load_photos(folder: str | None, crop: int, stride: int) -> Photos:
    """The photos of `folder`, or without one those that scikit-image ships."""
    if folder is None:
        return _shipped(crop, stride)
    if not Path(folder).is_dir():
        raise BadInput(f"--data {folder}: no such folder; name one that holds images")
    smallest = max(crop, stride)
    readable, unreadable = _read_folder(Path(folder))
    photos, small = _large_enough(readable, smallest)
    skipped = sorted(unreadable + small)
    if not photos:
        first = f", first {skipped[0]}" if skipped else ""
        raise BadInput(
            f"--data {folder}: no image of at least {smallest} x {smallest} pixels can be read "
            f"({len(skipped)} skipped{first}); name another folder or a smaller --crop"
        )
    training, held_out = _split(photos, smallest)
    return Photos(training, [_middle(photo, stride) for photo in held_out], skipped)


def _shipped(crop: int, stride: int) -> Photos:
    spec = find_spec("skimage")  # found, not imported: that takes a second
    if spec is None or spec.origin is None:
        raise BadInput("scikit-image, whose photos are the default, is missing; name a --data DIR")
    folder = Path(spec.origin).parent / "data"
    try:
        named = {name: _read(folder / name) for name in SHIPPED_TRAINING}
        held_out = [_middle(_read(folder / name), stride) for name in SHIPPED_HELD_OUT]
    except FileNotFoundError as error:
        raise BadInput(
            f"this scikit-image does not ship {error.filename}; name a --data DIR"
        ) from None
    training, skipped = _large_enough(named, crop)
    if not training:
        raise BadInput(f"--crop {crop} is larger than every photo; take a smaller one or --data")
    return Photos(training, held_out, skipped)


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All images below `folder` by path, in its order, and `path (reason)` of unreadable ones."""
    suffixes = Image.registered_extensions()
    readable, unreadable = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes):
        try:
            readable[str(path)] = _read(path)
        except Exception as error:  # broken files make Pillow raise nearly anything
            unreadable.append(f"{path} (unreadable: {type(error).__name__})")
    return readable, unreadable


def _large_enough(named: dict[str, Tensor], smallest: int) -> tuple[list[Tensor], list[str]]:
    """The photos with both sides >= smallest, and `name (reason)` of the others."""
    small = {name: photo for name, photo in named.items() if min(photo.shape[1:]) < smallest}
    reasons = [
        f"{name} ({photo.shape[2]} x {photo.shape[1]}, smaller than {smallest})"
        for name, photo in small.items()
    ]
    return [photo for name, photo in named.items() if name not in small], reasons


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))  # [height, width, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _split(photos: list[Tensor], smallest: int) -> tuple[list[Tensor], list[Tensor]]:
    """One photo in ten is held out, the first of each ten; of a single photo, the last third."""
    if len(photos) > 1:
        held_out = range(0, len(photos), HOLD_OUT_ONE_IN)[:HELD_OUT_LIMIT]
        training = [photo for index, photo in enumerate(photos) if index not in held_out]
        return training, [photos[index] for index in held_out]
    (photo,) = photos
    axis = 1 if photo.shape[1] > photo.shape[2] else 2
    side = photo.shape[axis]
    if side < 2 * smallest:
        raise BadInput(
            f"--data holds one usable image, too small to divide it ({side} pixels, "
            f"{2 * smallest} needed) into a part to train on and one to evaluate; add another"
        )
    held = max(smallest, side // 3)
    return [photo.narrow(axis, 0, side - held)], [photo.narrow(axis, side - held, held)]


def _middle(photo: Tensor, stride: int) -> Tensor:
    """The largest middle part whose sides are multiples of `stride` and at most HELD_OUT_SIDE."""
    height, width = (min(side, HELD_OUT_SIDE) // stride * stride for side in photo.shape[1:])
    top, left = (photo.shape[1] - height) // 2, (photo.shape[2] - width) // 2
    return photo[:, top : top + height, left : left + width].contiguous()


class Crops:
    """Endless random square crops, half of them mirrored; equal seeds draw equal crops."""

    def __init__(self, photos: list[Tensor], batch: int, side: int, seed: int) -> None:
        self.photos, self.batch, self.side = photos, batch, side
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """The next batch  # [batch, 3, side, side] float32 in [0, 1]."""
        return torch.stack([self._crop() for _ in range(self.batch)]).float() / 255

    def _crop(self) -> Tensor:
        photo = self.photos[self._below(len(self.photos))]  # [3, height, width]
        top = self._below(photo.shape[1] - self.side + 1)
        left = self._below(photo.shape[2] - self.side + 1)
        crop = photo[:, top : top + self.side, left : left + self.side]
        return crop.flip(2) if self._below(2) else crop

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))
