"""Metadata that nobody can read costs no pixels; why an image is unusable is told in words."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from bench.lic.data.decoding import Unusable, decode

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
SAVED = {"jpg": {}, "png": {}, "webp": {"lossless": True}}


def exif() -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = 6
    made[ExifTags.Base.Make] = "maker"
    made[ExifTags.Base.XResolution] = 72.0
    made.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:01"
    made.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    return made


def with_right_sums(png: bytes) -> bytes:
    """Its chunks' checksums anew."""
    made, place = png[:8], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        chunk = png[place + 4 : place + 8 + length]
        made += png[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + length
    return made


@pytest.mark.parametrize("suffix", SAVED)
def test_an_image_of_whole_pixels_is_taken_whatever_its_exif_is(
    suffix: str, tmp_path: Path
) -> None:
    """Upright or as it is stored: which, damaged bytes may say."""
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=exif(), **SAVED[suffix])
    whole = path.read_bytes()
    upright = decode(str(path))
    assert upright.shape == (3, 24, 16)
    stored = upright.rot90(1, (1, 2))
    seen = [upright, stored, stored.flip(1), stored.flip(2), stored.flip(1, 2)]
    seen += [turned.transpose(1, 2) for turned in seen[1:]]
    bytes_of_exif = exif().tobytes()[6:]  # without the name that JPEG gives them
    start = whole.index(bytes_of_exif[:40])
    places = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(places.randint(1, 4)):
            damaged[start + places.randrange(len(bytes_of_exif))] = places.randrange(256)
        path.write_bytes(with_right_sums(bytes(damaged)) if suffix == "png" else damaged)
        pixels = decode(str(path))
        assert any(torch.equal(pixels, one) for one in seen)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(turn: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    made = Image.Exif()
    made[ExifTags.Base.Orientation] = turn
    Image.fromarray(PIXELS).save(tmp_path / "image.png", exif=made)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "image.png")))
    assert np.array_equal(decode(str(tmp_path / "image.png")).permute(1, 2, 0), expected)


def reason(path: Path) -> str:
    with pytest.raises(Unusable) as caught:
        decode(str(path))
    return str(caught.value).removeprefix(f"{path} (unreadable: ").removesuffix(")")


def test_reasons_are_words(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    assert reason(path) == "no such file or directory"
    path.write_text("no image")
    assert reason(path) == "no image of a known format"
    text = PngInfo()
    text.add_text("comment", "0" * 2**21, zip=True)
    Image.fromarray(PIXELS).save(path, pnginfo=text)
    assert reason(path) == "text chunk too large"
    Image.fromarray(PIXELS).save(tmp_path / "image.jpg")
    Image.fromarray(PIXELS).save(path)
    for image in (path, path.with_suffix(".jpg")):
        image.write_bytes(image.read_bytes()[: 2 * image.stat().st_size // 3])
        assert reason(image) == "truncated"
    Image.fromarray(PIXELS).save(path)
    start = path.read_bytes().index(b"IDAT") + 4
    spoilt = path.read_bytes()[:start] + b"????" + path.read_bytes()[start + 4 :]
    path.write_bytes(with_right_sums(spoilt))
    assert reason(path).startswith("damaged")


def test_a_type_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError(3), struct.error("unpack requires"), IndexError(), OSError()):

        def fail(path: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        assert reason(tmp_path / "image.png") == "damaged"
