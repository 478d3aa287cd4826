"""Crop number i: a function of the seed and of i alone, so that nothing needs to be remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from bench.files import BadInput
from bench.lic.data.decoding import Unusable
from bench.lic.data.sources import Recent, Source, Sources

MOST_REPLACED = 1000  # unusable images in a row; a folder with that many is the wrong one


class Crops(Dataset[Tensor]):
    """An endless sequence of random square crops, half of them mirrored.

    Crop i of seed s is drawn by the counter-based generator Philox with key s at counter i, as
    four words: image, top, left, mirrored. An unusable image is replaced by what the next four
    words say. Workers, ranks and resumed runs thus draw the same crops, knowing only i.

    Args:
        training: images; those with a side below `side` are replaced.
        side: of a crop, in pixels.
        seed: 0 <= seed < 2^63.
        flip: whether to mirror half of the crops left to right.
    """

    def __init__(
        self, training: Sequence[Source], side: int, seed: int, *, flip: bool = True
    ) -> None:
        self.sources = training if isinstance(training, Sources) else Sources(training)
        self.side, self.seed, self.flip = side, seed, flip
        self.unusable: set[int] = set()  # indices that this process need not try again
        self.recent = Recent()

    def __getitem__(self, number: int) -> Tensor:
        """Crop `number`  # [3, side, side] uint8."""
        crop, reasons = self.draw(number)
        self.sources.found_unusable(reasons)
        return crop

    def draw(self, number: int) -> tuple[Tensor, list[str]]:
        """Crop `number`, and `path (reason)` of images that this process first found unusable.

        Raises:
            BadInput: a thousand images in a row are unusable.
        """
        words = _words(self.seed, number)
        reasons: list[str] = []
        for _ in range(MOST_REPLACED):
            index = _below(len(self.sources), next(words))
            place = next(words), next(words), next(words)
            if index in self.unusable:
                continue
            try:
                image = self.recent.pixels(self.sources[index], self.side)  # [3, height, width]
            except Unusable as reason:
                self.unusable.add(index)
                reasons.append(str(reason))
                continue
            return self._cut(image, *place), reasons
        last = f", the last one newly found being {reasons[-1]}" if reasons else ""
        raise BadInput(
            f"{MOST_REPLACED} images drawn in a row are unusable{last}; "
            "name another --data folder or a smaller --crop"
        )

    def _cut(self, image: Tensor, top_word: int, left_word: int, mirror_word: int) -> Tensor:
        top = _below(image.shape[1] - self.side + 1, top_word)
        left = _below(image.shape[2] - self.side + 1, left_word)
        crop = image[:, top : top + self.side, left : left + self.side]
        return crop.flip(2) if self.flip and _below(2, mirror_word) else crop.contiguous()


def _words(seed: int, number: int) -> Iterator[int]:
    """64-bit words; the raw words of Philox are the same in every version of numpy."""
    philox = np.random.Philox(key=seed, counter=[0, 0, 0, number])
    while True:
        yield from philox.random_raw(4).tolist()


def _below(limit: int, word: int) -> int:
    """A number in [0, limit) from a 64-bit word; uneven by no more than limit / 2^64."""
    return word * limit >> 64
