"""Whole images to evaluate a model on, one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from bench.files import readable, told
from bench.lic.data.decoding import Unusable
from bench.lic.data.sources import (
    SHIPPED,
    File,
    Kept,
    Source,
    below,
    recognise,
    shipped_held_out,
    shipped_training,
)


def reason_of(error: Exception) -> str:
    """Why an image failed that is not broken; torch has no type for a CPU's lack of memory."""
    short = ("can't allocate memory", "not enough memory", "out of memory")
    lacking = isinstance(error, MemoryError) or any(part in str(error) for part in short)
    return "too large for the memory there is" if lacking else told(error)


@dataclass(frozen=True)
class EvaluationSet:
    """`images` can be gone through any number of times; unreadable ones are left out and named.

    So is what one run fails on, for all runs: they are compared on the same images.
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
