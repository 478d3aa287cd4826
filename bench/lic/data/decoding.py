"""From an image file to uint8 RGB, whatever it holds: the pixels that a viewer would show."""

from __future__ import annotations

import errno
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from bench.files import readable

LARGEST_16_BIT = 65535
# What says nothing about the file: a run must not go on with another image because of these.
MACHINE_FAILED = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REASONS = {  # part of what Pillow says -> what that means
    "truncated": "truncated",
    "decompressed data too large": "text chunk too large",
    "too much memory used in text chunks": "text chunk too large",
    "decompression bomb": "more pixels than are safe to decode",
}


class Unusable(Exception):
    """An image that cannot be used; the message is `path (reason)`."""


def size(path: str) -> tuple[int, int]:
    """Height and width in pixels as they are stored, by the header alone.

    Turning the image upright may exchange them. Where it is turned is not looked up: in a PNG
    file that can stand behind the pixels.

    Raises:
        Unusable: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise _unusable(path, error) from None


def decode(path: str) -> Tensor:
    """The pixels of a file  # [3, height, width] uint8, a view of [height, width, 3].

    Turned upright by EXIF where that can be read; transparent parts on white; 16-bit grey divided
    by 257, so that white stays white; palette, grey and CMYK as RGB without a colour profile. Of
    several frames the first.

    Raises:
        Unusable: the file is missing, broken, no image, or of floats, whose white is unknown.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(_rgb(_upright(image)))  # [height, width, 3]
    except Exception as error:
        raise _unusable(path, error) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Turned by its EXIF, or as it is stored where that says nothing that can be understood.

    Unlike `ImageOps.exif_transpose`, which writes the rest of EXIF again and fails where it cannot.
    """
    image.load()  # in a PNG file EXIF can stand behind the pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each tag that makes no sense
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # bytes of any kind make Pillow's parser raise nearly anything
        if _machine_failed(error):
            raise
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unusable("floating-point pixels")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip all to white
        grey = np.clip(np.asarray(image).astype(np.int64), 0, LARGEST_16_BIT)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _unusable(path: str, error: Exception) -> Unusable:
    """The reason, unless it is the machine's: that is raised as it is."""
    if _machine_failed(error):
        raise error
    return Unusable(f"{readable(path)} (unreadable: {_reason(error)})")


def _machine_failed(error: Exception) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE_FAILED


def _reason(error: Exception) -> str:
    """In words; Pillow passes on what its parsers of broken files run into."""
    said = str(error).partition("\n")[0]
    if isinstance(error, Unusable):
        return said
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    for part, reason in REASONS.items():
        if part in said.lower():
            return reason
    told = isinstance(error, OSError | ValueError | SyntaxError) and said
    return f"damaged, {said}" if told else "damaged"
