"""Images to train on, kept in memory or decoded when a crop of them is drawn."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from bench.files import readable
from bench.lic.data.decoding import Unusable, decode, size

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
