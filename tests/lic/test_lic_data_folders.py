"""Folders of images: what each is recognised as, what is used, skipped and held out."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.files import BadInput
from bench.lic.data import Crops, batches, evaluation_set, images, load, sources
from bench.lic.data.sources import File, Kept


def write(path: Path, height: int, width: int, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def spoil(path: Path) -> None:
    """Cut the file in the middle: its header can still be read."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def names(lines: list[str]) -> list[str]:
    return [Path(line.split(" (")[0]).name for line in lines]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder is small enough to be kept in memory."""
    monkeypatch.setattr(images, "KEPT_IMAGES", 0)


def test_shipped_photos_are_there_and_the_held_out_one_is_another() -> None:
    photos = load(None, 64, 64)
    assert not set(sources.SHIPPED_TRAINING) & set(sources.SHIPPED_HELD_OUT)
    assert [tuple(photo.shape) for photo in photos.held_out] == [(3, 384, 512)]
    assert [source.name for source in photos.training] == list(sources.SHIPPED_TRAINING)
    for source in photos.training:
        assert source.pixels().dtype == torch.uint8
        assert source.pixels().shape[0] == 3
    assert photos.found == "scikit-image's photos; 4 to train on, 1 held out"


def test_held_out_images_of_a_folder_are_never_cropped(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / "deep" / f"{index:02}.png", 70, 80, 10 * index)
    photos = load(str(tmp_path), 64, 64)
    assert {photo.unique().item() for photo in photos.held_out} == {0, 100}
    drawn = torch.stack([Crops(photos.training, 64, 0)[i] for i in range(300)])
    assert drawn.unique().tolist() == [10 * index for index in range(12) if index not in (0, 10)]


@pytest.mark.usefixtures("large")
def test_a_large_folder_holds_out_alike_and_opens_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(45):
        write(tmp_path / f"{index:02}.png", 70, 80, index)
    spoil(tmp_path / "10.png")
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    photos = load(str(tmp_path), 64, 64)
    assert [photo.unique().item() for photo in photos.held_out] == [0, 11, 21, 31, 41]
    assert names(photos.skipped) == ["10.png"]
    assert len(photos.training) == 45 - 5 - 1
    assert all(isinstance(source, File) for source in photos.training)
    assert names(sorted(set(opened))) == [
        "00.png",
        "10.png",
        "11.png",
        "21.png",
        "31.png",
        "41.png",
    ]


def test_a_folder_of_more_pixels_than_memory_is_read_as_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        write(tmp_path / f"{index}.png", 64, 64)
    monkeypatch.setattr(images, "KEPT_BYTES", 3 * 3 * 64 * 64)
    assert isinstance(load(str(tmp_path), 64, 64).training[0], Kept)
    monkeypatch.setattr(images, "KEPT_BYTES", 3 * 3 * 64 * 64 - 1)
    assert isinstance(load(str(tmp_path), 64, 64).training[0], File)


def test_of_a_single_photo_the_last_third_is_held_out(tmp_path: Path) -> None:
    pixels = np.zeros((64, 300, 3), np.uint8)
    pixels[:, 200:] = 255
    Image.fromarray(pixels).save(tmp_path / "only.png")
    photos = load(str(tmp_path), 64, 64)
    assert [tuple(photo.shape) for photo in photos.held_out] == [(3, 64, 64)]
    assert photos.held_out[0].min() == 255
    assert photos.training[0].pixels().max() == 0


def test_unusable_files_are_skipped_named_and_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "cut.png"):
        write(tmp_path / name, 64, 64)
    write(tmp_path / "small.png", 20, 200)
    spoil(tmp_path / "cut.png")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "._a.png").write_text("nor is this, which macOS leaves behind")
    photos = load(str(tmp_path), 64, 64)
    assert len(photos.training) + len(photos.held_out) == 2
    assert names(photos.skipped) == ["cut.png", "small.png", "text.jpg"]
    assert "(200 x 20, smaller than 64)" in photos.skipped[1]


@pytest.mark.parametrize("content", ["nothing", "small", "one"])
@pytest.mark.parametrize("limit", [0, images.KEPT_IMAGES])
def test_a_folder_without_enough_pixels_says_so(
    tmp_path: Path, content: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "KEPT_IMAGES", limit)
    if content != "nothing":
        write(tmp_path / "a.png", 64, 64 if content == "one" else 32)
    with pytest.raises(BadInput, match="--data"):
        load(str(tmp_path), 64, 64)


def test_fingerprint_of_a_small_folder_changes_with_a_pixel(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, 64, 64, 1)
    before = load(str(tmp_path), 64, 64).fingerprint()
    assert before == load(str(tmp_path), 64, 64).fingerprint()
    write(tmp_path / "b.png", 64, 64, 2)
    assert before != load(str(tmp_path), 64, 64).fingerprint()


@pytest.mark.usefixtures("large")
def test_fingerprint_of_a_large_folder_is_of_names_and_sizes_not_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        write(tmp_path / "here" / "deep" / f"{index}.png", 64, 64)
    before = load(str(tmp_path / "here"), 64, 64).fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert load("./there/", 64, 64).fingerprint() == before
    changed = tmp_path / "there" / "deep" / "1.png"
    changed.write_bytes(changed.read_bytes() + b"more")
    longer = load("there", 64, 64).fingerprint()
    assert longer != before
    changed.rename(changed.with_name("4.png"))
    assert load("there", 64, 64).fingerprint() not in (before, longer)


@pytest.mark.usefixtures("large")
@pytest.mark.skipif(os.name == "nt", reason="links of Unix")
def test_a_link_to_nothing_in_a_large_folder_is_skipped_when_drawn(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"{index}.png", 64, 64)
    without = load(str(tmp_path), 64, 64).fingerprint()
    (tmp_path / "3.png").symlink_to("nowhere")
    photos = load(str(tmp_path), 64, 64)
    assert photos.fingerprint() not in (without, "00000000")
    list(itertools.islice(batches(Crops(photos.training, 64, seed=0), 4), 3))
    assert photos.skipped == [f"{tmp_path / '3.png'} (unreadable: no such file or directory)"]


@pytest.mark.parametrize("root", ["", "images"])
@pytest.mark.parametrize("limit", [0, images.KEPT_IMAGES])
def test_coco_trains_on_one_part_and_is_judged_by_the_first_eight_of_the_other(
    tmp_path: Path, root: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "KEPT_IMAGES", limit)
    for index in range(3):
        write(tmp_path / root / "train2017" / f"{index:012}.jpg", 64, 64, 100)
        write(tmp_path / root / "test2017" / f"{index:012}.jpg", 64, 64, 150)
    for index in range(10):
        write(tmp_path / root / "val2017" / f"{index:012}.jpg", 64, 64, 200 + index)
    photos = load(str(tmp_path), 64, 64)
    assert [round(photo.float().mean().item()) for photo in photos.held_out] == [*range(200, 208)]
    assert {source.pixels().unique().item() for source in photos.training} == {100}
    assert photos.found.startswith("COCO 2017 (train2017): 3 images, 10 apart to evaluate")
    judged = evaluation_set(str(tmp_path))
    assert (judged.name, len(judged)) == ("COCO 2017 (val2017)", 10)
    assert next(judged.images)[0] == f"{root}/val2017/000000000000.jpg".lstrip("/")


@pytest.mark.parametrize("part", ["train2017", "val2017"])
@pytest.mark.parametrize("itself", [True, False])
def test_a_part_of_coco_alone_is_divided_as_any_folder(
    tmp_path: Path, part: str, itself: bool
) -> None:
    for index in range(3):
        write(tmp_path / part / f"{index:012}.jpg", 64, 64, index)
    photos = load(str(tmp_path / part if itself else tmp_path), 64, 64)
    assert photos.found == f"COCO 2017 ({part}): 3 images; 2 to train on, 1 held out"


def test_kodak_is_known_by_its_names(tmp_path: Path) -> None:
    for index in (1, 24):
        write(tmp_path / f"kodim{index:02}.png", 8, 12)
    assert evaluation_set(str(tmp_path)).found == "Kodak: 2 of 24 images"
    write(tmp_path / "kodim25.png", 8, 12)
    assert evaluation_set(str(tmp_path)).name == f"folder {tmp_path.name}"


def test_of_tecnick_the_largest_rgb_images_are_taken(tmp_path: Path) -> None:
    for size in (600, 1200):
        group = f"RGB_{'OR' if size == 1200 else 'R02'}_{size:04}x{size:04}"
        write(tmp_path / "RGB" / group / f"{group}_001.png", size // 100, size // 100)
    found = evaluation_set(str(tmp_path))
    assert found.found == "Tecnick (1200 x 1200 RGB): 1 of 100 images"
    assert [name for name, _ in found.images] == ["RGB/RGB_OR_1200x1200/RGB_OR_1200x1200_001.png"]


@pytest.mark.parametrize(
    ("count", "size", "name"),
    [
        (40, (1200, 1200), "Tecnick (1200 x 1200 RGB)"),
        (41, (1200, 1200), "folder"),
        (30, (2048, 7), "CLIC 2022"),
        (30, (5, 2048), "CLIC 2022"),
        (30, (5, 2047), "folder"),
    ],
)
def test_sets_without_names_are_known_by_number_and_size(
    tmp_path: Path, count: int, size: tuple[int, int], name: str
) -> None:
    file = write(tmp_path / "0.png", *size)
    for index in range(1, count):
        (tmp_path / f"{index}.png").hardlink_to(file)
    assert evaluation_set(str(tmp_path)).name.startswith(name)


def test_an_evaluation_set_has_whole_images_and_leaves_out_the_broken_once(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a.png", 7, 70, 3)
    write(tmp_path / "b.png", 64, 64)
    spoil(tmp_path / "b.png")
    judged = evaluation_set(str(tmp_path))
    for _ in range(2):
        ((name, pixels),) = judged.images
        assert name == "deep/a.png"
        assert torch.equal(pixels, torch.full((3, 7, 70), 3, dtype=torch.uint8))
        assert names(judged.skipped) == ["b.png"]


def test_without_a_folder_the_held_out_photo_is_evaluated_whole() -> None:
    ((name, pixels),) = evaluation_set(None).images
    assert (name, tuple(pixels.shape)) == ("coffee.png", (3, 400, 600))
