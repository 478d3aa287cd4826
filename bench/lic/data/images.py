"""The images of a run, to train on and held out, and whole images to evaluate finished runs on."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from bench.files import BadInput, readable, told
from bench.lic.data.decoding import Unusable, size
from bench.lic.data.sources import (
    SHIPPED,
    File,
    Kept,
    Layout,
    Source,
    Sources,
    below,
    large_enough,
    recognise,
    shipped_held_out,
    shipped_training,
)

HOLD_OUT_ONE_IN = 10  # images of a folder, in order of path
HELD_OUT_LIMIT = 8  # keeps an evaluation cheap in a large folder
HELD_OUT_SIDE = 512  # longest side that is evaluated, from the middle of the image

# Folders up to here are decoded once and kept: Kodak is 28 MB, CLIC 2022 about 250, Tecnick 432.
KEPT_BYTES = 512 * 2**20
KEPT_IMAGES = 4000  # more are not even looked at: reading headers would take seconds


@dataclass(frozen=True)
class Images:
    training: Sources
    held_out: list[Tensor]  # uint8 [3, height, width], sides multiples of the model's stride
    found: str  # one line: what the folder was recognised as, and how many images
    root: str  # the folder; names below it are part of the fingerprint of a large one

    @property
    def skipped(self) -> list[str]:
        """`path (reason)` of the files found unusable up to now."""
        return self.training.skipped

    def fingerprint(self) -> str:
        """Eight hex digits that change with any pixel; crops can only be repeated from the same.

        Of a folder too large to be read for that: with any name or size of a file to train on.
        """
        crc = 0
        for source in self.training:
            if isinstance(source, Kept):
                crc = zlib.crc32(source.tensor.numpy().tobytes(), crc)
            else:
                line = f"{below(self.root, source.name)} {_bytes(source.name)}\n"
                crc = zlib.crc32(line.encode("utf-8", "surrogateescape"), crc)
        for image in self.held_out:
            crc = zlib.crc32(image.numpy().tobytes(), crc)
        return f"{crc:08x}"


def _bytes(path: str) -> int | None:
    """Of a file; None of one that is gone, or a link to nothing: it is skipped when drawn."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def load(folder: str | None, crop: int, stride: int) -> Images:
    """The images of `folder`, or without one those that scikit-image ships.

    A small folder is decoded into memory, so that all its unusable files are known at once. A
    larger one is only listed; its unusable files become known when a crop of them is drawn.

    Args:
        crop: side of the crops that will be drawn, in pixels; smaller images are skipped.
        stride: of the model; the sides of held-out images are multiples of it.

    Raises:
        BadInput: there is no such folder, or not enough in it to train on and to evaluate.
    """
    if folder is None:
        return _shipped(crop, stride)
    layout, smallest = recognise(folder), max(crop, stride)
    if _small(layout.paths + (layout.apart.paths if layout.apart else [])):
        training, held_out = _all_read(layout, folder, smallest)
    else:
        training, held_out = _listed(layout, smallest)
    if not training or not held_out:
        skipped = training.skipped
        first = f", first {skipped[0]}" if skipped else ""
        raise BadInput(
            f"--data {folder}: no image of at least {smallest} x {smallest} pixels can be read "
            f"({len(skipped)} skipped{first}); name another folder or a smaller --crop"
        )
    found = _found(layout.describe(), training, held_out)
    return Images(training, [_middle(image, stride) for image in held_out], found, folder)


def _shipped(crop: int, stride: int) -> Images:
    usable, skipped = _usable((Kept(*item) for item in shipped_training()), crop)
    if not usable:
        raise BadInput(f"--crop {crop} is larger than every photo; take a smaller one or --data")
    held_out = [_middle(image, stride) for _, image in shipped_held_out()]
    training = Sources(usable, skipped)
    return Images(training, held_out, _found(SHIPPED, training, held_out), "")


def _found(what: str, training: Sources, held_out: list[Tensor]) -> str:
    return f"{what}; {len(training)} to train on, {len(held_out)} held out"


def _small(paths: list[str]) -> bool:
    """Whether all fit into memory, by their headers."""
    if len(paths) > KEPT_IMAGES:
        return False
    decoded = 0
    for path in paths:
        try:
            height, width = size(path)
        except Unusable:
            continue
        decoded += 3 * height * width
        if decoded > KEPT_BYTES:
            return False
    return True


def _all_read(layout: Layout, folder: str, smallest: int) -> tuple[Sources, list[Tensor]]:
    usable, skipped = _usable((File(path) for path in layout.paths), smallest)
    if layout.apart is not None:
        judges, unusable = _usable((File(path) for path in layout.apart.paths), smallest)
        held_out = [source.pixels() for source in judges[:HELD_OUT_LIMIT]]
        return Sources(usable, skipped + unusable), held_out
    if len(usable) == 1:
        kept, held = _divide(usable[0], folder, smallest)
        return Sources([kept], skipped), [held]
    indices = range(0, len(usable), HOLD_OUT_ONE_IN)[:HELD_OUT_LIMIT]
    training = [source for index, source in enumerate(usable) if index not in indices]
    return Sources(training, skipped), [usable[index].pixels() for index in indices]


def _usable(sources: Iterable[Source], smallest: int) -> tuple[list[Source], list[str]]:
    """Those of at least this size, kept in memory, and `path (reason)` of the others."""
    usable: list[Source] = []
    skipped = []
    for source in sources:
        try:
            pixels = large_enough(source, smallest).pixels()
            usable.append(Kept(source.name, pixels.contiguous()))
        except Unusable as reason:
            skipped.append(str(reason))
    return usable, skipped


def _listed(layout: Layout, smallest: int) -> tuple[Sources, list[Tensor]]:
    """All paths but those held out; where one to hold out is unusable, the next one in its place.

    Only images to hold out are opened.
    """
    candidates = (layout.apart or layout).paths
    every = 1 if layout.apart else HOLD_OUT_ONE_IN
    held_out: list[Tensor] = []
    taken, skipped = set(), []
    index = 0
    while index < len(candidates) and len(held_out) < HELD_OUT_LIMIT:
        path = candidates[index]
        taken.add(path)
        try:
            held_out.append(large_enough(File(path), smallest).pixels())
            index += every
        except Unusable as reason:
            skipped.append(str(reason))
            index += 1
    return Sources([File(p) for p in layout.paths if p not in taken], skipped), held_out


def _divide(source: Source, folder: str, smallest: int) -> tuple[Kept, Tensor]:
    """A single image: its last third is held out, along the longer side."""
    image = source.pixels()
    axis = 1 if image.shape[1] > image.shape[2] else 2
    side = image.shape[axis]
    if side < 2 * smallest:
        raise BadInput(
            f"--data {folder} holds one usable image, too small to divide it ({side} pixels, "
            f"{2 * smallest} needed) into a part to train on and one to evaluate; add another"
        )
    held = max(smallest, side // 3)
    training = image.narrow(axis, 0, side - held)
    return Kept(source.name, training), image.narrow(axis, side - held, held)


def _middle(image: Tensor, stride: int) -> Tensor:
    """The largest middle part whose sides are multiples of `stride` and at most HELD_OUT_SIDE."""
    height, width = (min(side, HELD_OUT_SIDE) // stride * stride for side in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()


# To evaluate on -----------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Why an image failed that is not broken; torch has no type for a CPU's lack of memory."""
    short = ("can't allocate memory", "not enough memory", "out of memory")
    lacking = isinstance(error, MemoryError) or any(part in str(error) for part in short)
    return "too large for the memory there is" if lacking else told(error)


@dataclass(frozen=True)
class EvaluationSet:
    """Whole images, one in memory at a time, to be gone through any number of times.

    Unreadable ones are left out and named. So is what one run fails on, for all runs: they are
    compared on the same images.
    """

    name: str  # Kodak, Tecnick (1200 x 1200 RGB), CLIC 2022, COCO 2017 (val2017), or the folder's
    found: str  # one line: what was recognised, and how many
    sources: list[Source]
    root: str = ""
    skipped: list[str] = field(default_factory=list)  # `path (reason)`, known after going through
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why a run failed on it

    def __len__(self) -> int:
        """Images there are, with those that will turn out unreadable."""
        return len(self.sources)

    @property
    def images(self) -> Iterator[tuple[str, Tensor]]:
        """Path below the folder, and pixels  # uint8 [3, height, width], any size."""
        for source in self.sources:
            name = readable(below(self.root, source.name))
            if name in self.left_out:
                continue
            try:
                pixels = source.pixels().contiguous()
            except Unusable as reason:
                if str(reason) not in self.skipped:
                    self.skipped.append(str(reason))
                continue
            except (MemoryError, OSError) as error:
                self.left_out[name] = reason_of(error)
                continue
            yield name, pixels


def evaluation_set(folder: str | None) -> EvaluationSet:
    """All images of a folder, of COCO those of val2017; without one, scikit-image's held-out photo.

    Raises:
        BadInput: there is no such folder, or no image in it.
    """
    if folder is None:
        kept: list[Source] = [Kept(*item) for item in shipped_held_out()]
        return EvaluationSet(SHIPPED, f"{SHIPPED}: {len(kept)} held out", kept)
    layout = recognise(folder)
    layout = layout.apart or layout
    return EvaluationSet(layout.name, layout.describe(), [File(p) for p in layout.paths], folder)


def calibration_set(folder: str | None) -> EvaluationSet:
    """All images of a folder, of COCO those of train2017; without one, those of scikit-image.

    Raises:
        BadInput: there is no such folder, or no image in it.
    """
    if folder is None:
        kept: list[Source] = [Kept(*item) for item in shipped_training()]
        return EvaluationSet(SHIPPED, f"{SHIPPED}: {len(kept)} to train on", kept)
    layout = recognise(folder, "--calibration")
    return EvaluationSet(layout.name, layout.describe(), [File(p) for p in layout.paths], folder)
