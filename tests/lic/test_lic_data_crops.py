"""Crops and batches: the same ones whatever the workers, the ranks, and the step to start from."""

from __future__ import annotations

import os
import pickle
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from bench.files import BadInput
from bench.lic.data import Crops, Sources, batches
from bench.lic.data.sources import File, Kept, Recent

SIDE = 8


def kept(*images: Tensor) -> list[Kept]:
    return [Kept(f"image {index}", image) for index, image in enumerate(images)]


@pytest.fixture(scope="module")
def noisy() -> list[Kept]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((9, 30), (40, 8), (17, 17))
    return kept(*(torch.randint(256, (3, *s), generator=generator).byte() for s in sizes))


@pytest.fixture
def folder(tmp_path: Path) -> Sources:
    """Six images, each of one value, of which one is broken and one too small."""
    for index in range(6):
        side = 5 if index == 2 else 20
        Image.new("RGB", (side, 20), (index,) * 3).save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:60])
    return Sources([File(str(tmp_path / f"{index}.png")) for index in range(6)])


def values(crops: Tensor) -> list[int]:
    return crops[:, 0, 0, 0].tolist()


def test_crops_reach_every_corner_and_are_mirrored_half_of_the_time() -> None:
    ramp = torch.arange(66, dtype=torch.uint8).expand(3, 66, 66)
    drawn = torch.stack([Crops(kept(ramp), 64, 0)[i] for i in range(200)])
    assert set(values(drawn)) == {0, 1, 2, 63, 64, 65}
    assert 70 < sum(value < 3 for value in values(drawn)) < 130
    upright = torch.stack([Crops(kept(ramp), 64, 0, flip=False)[i] for i in range(60)])
    assert set(values(upright)) == {0, 1, 2}
    turned = Crops(kept(ramp.transpose(1, 2)), 64, 0)
    assert set(values(torch.stack([turned[i] for i in range(60)]))) == {0, 1, 2}


def test_every_image_is_drawn_equally_often() -> None:
    one_valued = kept(*(torch.full((3, 8, 8), i, dtype=torch.uint8) for i in range(4)))
    drawn = torch.stack([Crops(one_valued, SIDE, 3)[i] for i in range(4000)])
    counts = torch.tensor(values(drawn)).bincount(minlength=4)
    assert ((counts - 1000).abs() < 5 * (4000 * 3 / 16) ** 0.5).all()  # 5 standard deviations


def test_a_crop_depends_on_seed_and_number_alone(noisy: list[Kept]) -> None:
    first, second = Crops(noisy, SIDE, 5), pickle.loads(pickle.dumps(Crops(noisy, SIDE, 5)))
    forwards = [first[i] for i in range(20)]
    backwards = [second[i] for i in reversed(range(20))][::-1]
    assert all(map(torch.equal, forwards, backwards))
    other = Crops(noisy, SIDE, 6)
    assert sum(torch.equal(crop, other[i]) for i, crop in enumerate(forwards)) < 5
    assert not torch.equal(first[2**40], first[2**40 + 1])


def test_the_crops_of_a_seed_stay_as_they_are() -> None:
    """A run that is resumed with later versions of libraries goes on with the same crops."""
    ramp = kept(torch.arange(200, dtype=torch.uint8).expand(3, 8, 200))
    early, late = Crops(ramp, 1, 0), Crops(ramp, 1, 2**63 - 1)
    assert [early[i][0].item() for i in range(6)] == [22, 17, 199, 181, 38, 179]
    assert late[10**12][0].item() == 106


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 10**9),
    world=st.integers(1, 4),
    per_rank=st.integers(1, 3),
)
def test_shares_of_all_ranks_together_are_the_batch_of_one_process(
    noisy: list[Kept], seed: int, start: int, world: int, per_rank: int
) -> None:
    crops, batch = Crops(noisy, SIDE, seed), world * per_rank
    whole = list(islice(batches(crops, batch, start), 2))
    shares = [islice(batches(crops, batch, start, 0, r, world), 2) for r in range(world)]
    together = [torch.cat(parts) for parts in zip(*shares, strict=True)]
    assert all(map(torch.equal, together, whole))
    numbers = range(start * batch, (start + 2) * batch)
    assert torch.equal(torch.cat(whole), torch.stack([crops[n] for n in numbers]))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_a_later_start_change_nothing(noisy: list[Kept], workers: int) -> None:
    crops = Crops(noisy, SIDE, 1)
    alone = list(islice(batches(crops, 4), 7))
    state = torch.get_rng_state()
    assert all(map(torch.equal, islice(batches(crops, 4, 0, workers), 7), alone))
    assert all(map(torch.equal, islice(batches(crops, 4, 3, workers), 4), alone[3:]))
    assert torch.equal(torch.get_rng_state(), state), "the noise of a run would depend on workers"


def test_a_batch_that_ranks_cannot_share_is_refused(noisy: list[Kept]) -> None:
    with pytest.raises(BadInput, match="multiple"):
        batches(Crops(noisy, SIDE, 0), 4, world=3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_unusable_images_are_replaced_alike_and_named_once(
    folder: Sources, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        torch.cat(list(islice(batches(Crops(folder, SIDE, 7), 4, 0, workers), 10)))
        for _ in range(2)
    )
    named = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped ")]
    assert named == [f"skipped {reason}" for reason in folder.skipped]
    assert [Path(line.split(" (")[0]).name for line in folder.skipped] == ["4.png", "2.png"]
    assert folder.skipped[1].endswith("(5 x 20, smaller than 8)")
    assert set(values(first)) == {0, 1, 3, 5}
    backwards = [Crops(folder, SIDE, 7)[number] for number in reversed(range(40))]
    assert torch.equal(first, torch.stack(backwards).flip(0))
    assert torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_which_nothing_can_be_used_ends_in_one_line(
    folder: Sources, workers: int
) -> None:
    with pytest.raises(BadInput, match=r"\A1000 images drawn in a row are unusable.*--crop\Z"):
        next(batches(Crops(folder, 21, 0), 4, 0, workers))


def test_workers_leave_ctrl_c_to_the_main_process(noisy: list[Kept]) -> None:
    before = set(torch.multiprocessing.active_children())  # of other tests
    prepared = batches(Crops(noisy, SIDE, 1), 4, 0, 1)
    first = next(prepared)
    (worker,) = set(torch.multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGINT)
    later = list(islice(prepared, 5))  # more than were prepared before the signal
    assert worker.is_alive()
    assert all(map(torch.equal, [first, *later], batches(Crops(noisy, SIDE, 1), 4)))
    prepared.close()


def test_recently_decoded_images_are_kept_up_to_a_limit(
    folder: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, real = [], File.pixels
    monkeypatch.setattr(File, "pixels", lambda file: decoded.append(file.name[-5]) or real(file))
    recent = Recent(limit=2 * 3 * 20 * 20)
    for index in (0, 1, 0, 3, 0, 1):
        assert recent.pixels(folder[index], SIDE).unique().tolist() == [index]
    assert decoded == ["0", "1", "3", "1"]
    assert recent.bytes == sum(image.nbytes for image in recent.decoded.values()) <= recent.limit
    assert not pickle.loads(pickle.dumps(recent)).decoded


def test_a_decoded_crop_equals_that_of_the_image_in_memory(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    memory = kept(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    one, other = Crops(memory, SIDE, 0), Crops([File(str(tmp_path / "image.png"))], SIDE, 0)
    assert all(torch.equal(one[i], other[i]) for i in range(10))
