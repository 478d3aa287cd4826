"""A disk that is full: the message names the file and the reason, and what was there stays."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
import torch

from bench import envelope
from bench.__main__ import main as bench
from bench.files import CannotWrite, write_text
from bench.lic.__main__ import main
from bench.lic.training import checkpoint

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
FULL = "No space left on device; free some space, or take another place"


def full(path: Path) -> None:
    """Writing beside `path`, to put that in its place, fails as on a full disk."""
    path.with_name(path.name + ".partial").symlink_to("/dev/full")


def tiny(data: Path, out: Path, *more: str) -> list[str]:
    flags = [f"--factor={1 / 24}", "--model=hyperprior", "--crop=64", "--batch=2", "--steps=4"]
    return ["train", f"--data={data}", f"--out={out}", *flags, "--threads=1", *more]


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt", "result.json"])
def test_training_says_which_file_and_goes_on_once_there_is_space(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full(tmp_path / name)
    assert main(tiny(data, tmp_path)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"python -m bench.lic: cannot write {tmp_path / name}: {FULL}"
    assert not list(tmp_path.glob("*.partial"))  # it would keep the disk full
    more = [] if name == "checkpoint.pt" else ["--resume"]
    assert main(tiny(data, tmp_path, *more)) == 0


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(size: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"weights": torch.ones(2)})
    full(path)
    with pytest.raises(CannotWrite, match=r"checkpoint\.pt: No space left on device"):
        checkpoint.write(path, {"weights": torch.zeros(size)})
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(2))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Unix")
def test_a_disk_that_fills_up_while_it_is_written_to(tmp_path: Path) -> None:
    """A limit on the size of files in place of a small disk."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CannotWrite, match=r"checkpoint\.pt: File too large"):
            checkpoint.write(tmp_path / "checkpoint.pt", {"weights": torch.zeros(1_000_000)})
        with pytest.raises(CannotWrite, match=r"rows\.json: File too large"):
            envelope.write(str(tmp_path / "rows.json"), [{"text": "0" * 200_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_results_of_other_commands_name_their_file_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "launches.json"
    full(path)
    assert bench(["launches", "--shapes=elic_like", f"--json={path}"]) == 1
    assert capsys.readouterr().err.endswith(f"cannot write {path}: {FULL}\n")
    with pytest.raises(CannotWrite, match="/dev/full: No space left on device"):
        write_text(Path("/dev/full"), "text")


def test_other_reasons_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(CannotWrite, match=r"rows\.json: Read-only file system$"):
        envelope.write(str(tmp_path / "rows.json"), [])
