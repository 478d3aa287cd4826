"""Links to folders are followed, each folder once; what is no regular file is no image."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.files import BadInput
from bench.lic.data import evaluation_set, load
from bench.lic.data.sources import recognise

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")


def write(path: Path, value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(path)


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in recognise(str(folder)).paths]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "a.png")
    write(tmp_path / "elsewhere" / "deep" / "b.png", 2)
    (data / "link").symlink_to(tmp_path / "elsewhere")
    assert found(data) == ["a.png", "link/deep/b.png"]
    assert load(str(data), 64, 64).found.endswith("2 images; 1 to train on, 1 held out")
    assert [name for name, _ in evaluation_set(str(data)).images] == ["a.png", "link/deep/b.png"]


def test_a_folder_reached_by_several_ways_is_taken_once_by_the_one_without_links(
    tmp_path: Path,
) -> None:
    write(tmp_path / "z" / "b.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "z" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "round.png").symlink_to("round.png")
    assert found(tmp_path) == ["round.png", "z/b.png"]


def test_folders_that_all_link_to_each_other_are_listed_at_once(tmp_path: Path) -> None:
    for one in range(12):
        write(tmp_path / str(one) / "a.png")
        for other in range(12):
            (tmp_path / str(one) / f"to{other}").symlink_to(tmp_path / str(other))
    assert len(found(tmp_path)) == 12


def test_pipes_sockets_and_devices_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/null")
    (tmp_path / "link.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        with pytest.raises(BadInput, match="no images in it"):
            load(str(tmp_path), 64, 64)
        write(tmp_path / "a.png")
        write(tmp_path / "b.png")
        assert found(tmp_path) == ["a.png", "b.png"]


def test_hidden_folders_are_left_out_as_before(tmp_path: Path) -> None:
    for name in ("a.png", ".hidden/b.png", "__MACOSX/c.png", "deep/.d.png"):
        write(tmp_path / name)
    assert found(tmp_path) == ["a.png"]
