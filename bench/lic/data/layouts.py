"""What a folder is: one of the known data sets by its names and sizes, or any folder of images.

COCO 2017 has its images in train2017/ and val2017/; Kodak is kodim01.png to kodim24.png; Tecnick
means the folder RGB_OR_1200x1200 of 100 images in the TESTIMAGES archive (https://testimages.org),
of which other collections hold 40; CLIC 2022's validation and test sets are 30 PNG files each,
whose longer side is 2048 pixels (https://clic.compression.cc/2022/tasks/). Those two sets have no
names that tell them apart, so both are called CLIC 2022.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bench.files import BadInput, readable
from bench.lic.data.decoding import Unusable, size
from bench.lic.data.walking import files_below

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
}
COCO = ("train2017", "val2017")
KODAK = re.compile(r"kodim(0[1-9]|1\d|2[0-4])\.png")
KODAK_IMAGES = 24
TECNICK = "RGB_OR_1200x1200"
TECNICK_SIDE, TECNICK_IMAGES = 1200, (40, 100)
CLIC_SIDE, CLIC_IMAGES = 2048, 30


@dataclass(frozen=True)
class Layout:
    """Paths in the order of the data; of some data sets, those to evaluate are apart."""

    name: str
    paths: list[str]
    apart: Layout | None = None  # never trained on
    expected: int | None = None  # how many images the whole set has

    def describe(self) -> str:
        of_all = (
            f" of {self.expected}" if self.expected and len(self.paths) != self.expected else ""
        )
        aside = f", {len(self.apart.paths)} apart to evaluate" if self.apart else ""
        return f"{self.name}: {len(self.paths)}{of_all} images{aside}"


def recognise(folder: str, option: str = "--data") -> Layout:
    """The images of a folder; only directories and at most 100 headers are read.

    Args:
        option: the one that names the folder, for the message of an error.

    Raises:
        BadInput: there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise BadInput(f"{option} {folder}: no such folder; name one that holds images")
    layout = _coco(Path(folder)) or _by_content(Path(folder))
    if not layout.paths:
        raise BadInput(f"{option} {folder}: no images in it; name a folder that holds some")
    return layout


def below(folder: str, path: str) -> str:
    """The path of an image as seen from its folder, the same on every machine."""
    return path.removeprefix(str(Path(folder))).lstrip(os.sep).replace(os.sep, "/")


def _coco(folder: Path) -> Layout | None:
    """Its parts below the folder or below images/, as some archives are unpacked, or one part."""
    if (name := folder.absolute().name) in COCO:
        return Layout(f"COCO 2017 ({name})", _images(folder))
    for root in (folder, folder / "images"):
        parts = [_coco(root / part) for part in COCO if (root / part).is_dir()]
        if usable := [part for part in parts if part is not None and part.paths]:
            training, *apart = usable
            return replace(training, apart=apart[0] if apart else None)
    return None


def _by_content(folder: Path) -> Layout:
    paths = _images(folder)
    names = [os.path.basename(path) for path in paths]
    if paths and all(KODAK.fullmatch(name) for name in names):
        return Layout("Kodak", paths, expected=KODAK_IMAGES)
    if tecnick := [path for path in paths if Path(path).parent.name == TECNICK]:
        return Layout("Tecnick (1200 x 1200 RGB)", tecnick, expected=max(TECNICK_IMAGES))
    if len(paths) in TECNICK_IMAGES and _sizes(paths) == {(TECNICK_SIDE, TECNICK_SIDE)}:
        return Layout("Tecnick (1200 x 1200 RGB)", paths)
    pngs = all(name.lower().endswith(".png") for name in names)
    if len(paths) == CLIC_IMAGES and pngs and {max(s) for s in _sizes(paths)} == {CLIC_SIDE}:
        return Layout("CLIC 2022", paths)
    return Layout(f"folder {readable(folder.resolve().name)}", paths)


def _images(folder: Path) -> list[str]:
    """Files named as images below a folder, by path; hidden ones and macOS's shadows left out."""
    found = [
        entry.path
        for entry in files_below(str(folder))
        if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in SUFFIXES
    ]
    return sorted(found, key=lambda path: path.split(os.sep))


def _sizes(paths: list[str]) -> set[tuple[int, int]]:
    """All sizes there are; (0, 0) stands for a header that cannot be read."""

    def one(path: str) -> tuple[int, int]:
        try:
            return size(path)
        except Unusable:
            return 0, 0

    return {one(path) for path in paths}
