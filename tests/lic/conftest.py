"""All tests of compression models run on one thread; small images that several of them train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Two that share a core with other tests wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images that are smooth, coloured and small."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[:80, :96] / 20
    for index in range(3):
        planes = [np.sin((c + 1) * x + index) * np.cos(y + c) for c in range(3)]
        pixels = (127.5 * (1 + np.stack(planes, axis=2))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
