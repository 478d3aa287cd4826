"""What a folder is, by names and sizes, and its images, kept in memory or decoded when drawn."""

from __future__ import annotations

import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from bench.files import BadInput, readable
from bench.lic.data.decoding import Unusable, decode, size


def files_below(top: str) -> Iterator[os.DirEntry[str]]:
    """Regular files, links to them, and links to nothing, which whoever opens them can name.

    Pipes, sockets and devices are left out: reading one may never end. So are hidden folders, and
    macOS's shadows. A link to a folder is followed, after all folders that need none, unless its
    folder was seen: each is gone through once, whatever loops there are, and always by the same
    name.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [top], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # not ours to read, or gone
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is(entry.is_dir):
                if entry.name[0] != "." and entry.name != "__MACOSX":
                    (links if entry.is_symlink() else folders).append(entry.path)
            elif _is(entry.is_file) or not os.path.exists(entry.path):
                yield entry


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a loop of links, which leads to nothing
        return False


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


# Bytes of decoded images that each process keeps. Pays for folders of up to some thousand photos;
# of COCO's 118,000 no image is drawn again soon, whatever fits into memory.
RECENT_BYTES = 256 * 2**20


class Source(Protocol):
    @property
    def name(self) -> str: ...

    def size(self) -> tuple[int, int]:
        """Height and width; Unusable if they cannot be read."""

    def pixels(self) -> Tensor:
        """[3, height, width] uint8; Unusable if the file is broken."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An image in memory."""

    name: str
    tensor: Tensor  # [3, height, width] uint8

    def size(self) -> tuple[int, int]:
        return self.tensor.shape[1], self.tensor.shape[2]

    def pixels(self) -> Tensor:
        return self.tensor


@dataclass(frozen=True, slots=True)
class File:
    """An image on the disk, decoded whenever it is asked for."""

    name: str  # the path

    def size(self) -> tuple[int, int]:
        return size(self.name)

    def pixels(self) -> Tensor:
        return decode(self.name)


class Sources(list[Source]):
    """The images to train on, and `path (reason)` of those found unusable so far, each once."""

    def __init__(self, sources: Iterable[Source], skipped: Iterable[str] = ()) -> None:
        super().__init__(sources)
        self.skipped = list(skipped)

    def found_unusable(self, reasons: Iterable[str]) -> None:
        """Count those that are new, and name them on standard error (whole, beside a bar)."""
        for reason in reasons:
            if reason not in self.skipped:
                self.skipped.append(reason)
                tqdm.write(f"skipped {reason}", file=sys.stderr)


class Recent:
    """The images decoded last, up to so many bytes."""

    def __init__(self, limit: int = RECENT_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self.decoded: OrderedDict[str, Tensor] = OrderedDict()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.limit,)  # a worker that is sent this starts with an empty one

    def pixels(self, source: Source, smallest: int) -> Tensor:
        """Of a source  # [3, height, width] uint8, both sides >= smallest.

        Raises:
            Unusable: it is smaller, which its header shows before it is decoded, or broken.
        """
        if isinstance(source, Kept):
            return large_enough(source, smallest).pixels()
        if source.name in self.decoded:
            self.decoded.move_to_end(source.name)
            return self.decoded[source.name]
        pixels = large_enough(source, smallest).pixels()
        self.decoded[source.name] = pixels
        self.bytes += pixels.nbytes
        while self.bytes > self.limit:
            self.bytes -= self.decoded.popitem(last=False)[1].nbytes
        return pixels


def large_enough(source: Source, smallest: int) -> Source:
    """The source itself, or Unusable if a side of it is smaller."""
    height, width = source.size()
    if min(height, width) < smallest:
        raise Unusable(f"{readable(source.name)} ({width} x {height}, smaller than {smallest})")
    return source


SHIPPED = "scikit-image's photos"

# Colour photographs inside the scikit-image wheel. Read as files: `skimage.data` would download
# what it does not find. motorcycle_right, nearly the same picture as the left one, is left out.
SHIPPED_TRAINING = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")
SHIPPED_HELD_OUT = ("coffee.png",)


def shipped_training() -> list[tuple[str, Tensor]]:
    """Names and photos  # uint8 [3, height, width]."""
    return [(name, _read(name)) for name in SHIPPED_TRAINING]


def shipped_held_out() -> list[tuple[str, Tensor]]:
    return [(name, _read(name)) for name in SHIPPED_HELD_OUT]


def _read(name: str) -> Tensor:
    spec = find_spec("skimage")  # found, not imported: that takes a second
    if spec is None or spec.origin is None:
        raise BadInput("scikit-image, whose photos are the default, is missing; name a --data DIR")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise BadInput(f"this scikit-image does not ship {name}; name a --data DIR")
    return decode(str(path)).contiguous()
