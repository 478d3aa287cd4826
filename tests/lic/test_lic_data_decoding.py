"""Image files of every kind become the uint8 RGB that a viewer shows."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.lic.data.decoding import Unusable, decode, size

GREY16 = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
GREY8 = [[0, 100], [200, 255]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "PA", "1", "CMYK", "YCbCr"])
def test_every_mode_of_a_white_image_is_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr", "PA") else "image.png")
    Image.new("RGB", (6, 4), "white").convert(mode if mode != "PA" else "P").save(path)
    pixels = decode(str(path))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.full((3, 4, 6), 255, dtype=torch.uint8))


@pytest.mark.parametrize(("suffix", "mode"), [("png", "I;16"), ("tif", "I;16"), ("tif", "I;16B")])
def test_sixteen_bits_keep_their_shades(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    pixels = GREY16 if mode == "I;16" else GREY16.astype(">u2")
    Image.frombytes(mode, (2, 2), pixels.tobytes()).save(path)
    assert decode(str(path)).tolist() == [GREY8] * 3


def test_integers_of_32_bits_are_taken_as_16(tmp_path: Path) -> None:
    Image.fromarray(GREY16.astype(np.int32)).save(tmp_path / "deep.tif")
    assert decode(str(tmp_path / "deep.tif")).tolist() == [GREY8] * 3


def test_transparent_parts_show_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.save(tmp_path / "image.png")
    assert decode(str(tmp_path / "image.png"))[:, 0].T.tolist() == [[10, 20, 30], [255] * 3]


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    image.putpixel((0, 0), (255, 0, 0))
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "image.png", exif=exif)
    pixels = decode(str(tmp_path / "image.png"))
    assert tuple(pixels.shape) == (3, 6, 4)
    assert pixels[0].nonzero().tolist() == [[0, 3]]


def test_size_reads_the_header_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[:200])
    assert size(str(tmp_path / "image.png")) == (40, 60)
    with pytest.raises(Unusable, match=r"image\.png \(unreadable: "):
        decode(str(tmp_path / "image.png"))


def test_floats_are_refused_since_their_white_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(Unusable, match="floating-point"):
        decode(str(tmp_path / "image.tif"))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "too many open files")])
@pytest.mark.parametrize("read", [size, decode])
def test_what_fails_for_want_of_memory_or_handles_is_not_the_files_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception, read: object
) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        read("image.png")
