"""Photos: what is used, what is skipped, what is held out, and which crops are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.command import BadInput
from bench.lic.photos import SHIPPED_HELD_OUT, SHIPPED_TRAINING, Crops, load_photos


def write(path: Path, height: int, width: int, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def test_shipped_photos_are_there_and_the_held_out_one_is_another() -> None:
    photos = load_photos(None, 64, 64)
    assert not set(SHIPPED_TRAINING) & set(SHIPPED_HELD_OUT)
    assert [tuple(photo.shape) for photo in photos.held_out] == [(3, 384, 512)]
    assert len(photos.training) == len(SHIPPED_TRAINING)
    assert all(photo.dtype == torch.uint8 and photo.shape[0] == 3 for photo in photos.training)


def test_crops_repeat_from_equal_seeds_and_from_a_saved_state() -> None:
    photos = load_photos(None, 64, 64).training
    first, second, other = (Crops(photos, 3, 64, seed) for seed in (5, 5, 6))
    assert torch.equal(first.draw(), second.draw())
    state = first.generator.get_state()
    following = first.draw()
    assert following.shape == (3, 3, 64, 64)
    assert not torch.equal(following, other.draw())
    first.generator.set_state(state)
    assert torch.equal(first.draw(), following)


def test_crops_reach_every_corner_and_are_mirrored_half_of_the_time() -> None:
    ramp = torch.arange(66, dtype=torch.uint8).expand(3, 66, 66)
    crops = Crops([ramp], 200, 64, 0).draw() * 255  # [200, 3, 64, 64]
    left = crops[:, 0, 0, 0].round().int().tolist()
    assert set(left) == {0, 1, 2, 63, 64, 65}
    assert 70 < sum(value < 3 for value in left) < 130


def test_held_out_photos_of_a_folder_are_never_cropped(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / "deep" / f"{index:02}.png", 70, 80, 10 * index)
    photos = load_photos(str(tmp_path), 64, 64)
    held_out = {photo.unique().item() for photo in photos.held_out}
    assert held_out == {0, 100}
    drawn = (Crops(photos.training, 300, 64, 0).draw() * 255).round().unique().tolist()
    assert drawn == [10 * index for index in range(12) if index not in (0, 10)]


def test_of_a_single_photo_the_last_third_is_held_out(tmp_path: Path) -> None:
    pixels = np.zeros((64, 300, 3), np.uint8)
    pixels[:, 200:] = 255
    Image.fromarray(pixels).save(tmp_path / "only.png")
    photos = load_photos(str(tmp_path), 64, 64)
    assert [tuple(photo.shape) for photo in photos.held_out] == [(3, 64, 64)]
    assert photos.held_out[0].min() == 255
    assert photos.training[0].max() == 0


def test_unusable_files_are_skipped_named_and_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, 64, 64, 1)
    write(tmp_path / "small.png", 20, 200, 1)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    photos = load_photos(str(tmp_path), 64, 64)
    assert len(photos.training) + len(photos.held_out) == 2
    assert [Path(line.split(" (")[0]).name for line in photos.skipped] == [
        "cut.png",
        "small.png",
        "text.jpg",
    ]


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for index, mode in enumerate(("L", "RGBA", "P", "1")):
        Image.new(mode, (64, 64)).save(tmp_path / f"{index}.png")
    photos = load_photos(str(tmp_path), 64, 64)
    assert {tuple(photo.shape) for photo in photos.training} == {(3, 64, 64)}
    assert len(photos.training) == 3


@pytest.mark.parametrize("content", ["nothing", "small", "one"])
def test_a_folder_without_enough_pixels_says_so(tmp_path: Path, content: str) -> None:
    if content != "nothing":
        write(tmp_path / "a.png", 64, 64 if content == "one" else 32, 1)
    with pytest.raises(BadInput, match="--data"):
        load_photos(str(tmp_path), 64, 64)


def test_fingerprint_changes_with_a_pixel(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, 64, 64, 1)
    before = load_photos(str(tmp_path), 64, 64).fingerprint()
    assert before == load_photos(str(tmp_path), 64, 64).fingerprint()
    write(tmp_path / "b.png", 64, 64, 2)
    assert before != load_photos(str(tmp_path), 64, 64).fingerprint()
