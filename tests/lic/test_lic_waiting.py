"""Batches arrive without shared memory, and a run that waits for one can be stopped."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bench.lic.__main__ import main
from bench.lic.data import Crops, batches, load
from bench.lic.training import Training, processes
from bench.turns import time_limit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of Unix")


def tiny(data: Path, out: Path, *more: str) -> list[str]:
    flags = [f"--factor={1 / 24}", "--model=hyperprior", "--crop=64", "--batch=2", "--steps=4"]
    return ["train", f"--data={data}", f"--out={out}", *flags, "--threads=1", *more]


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is made of files on Linux")
def test_batches_arrive_where_shared_memory_holds_none(data: Path) -> None:
    """A limit on files, which shared memory is made of, in place of a small mount."""
    import resource

    crops = Crops(load(str(data), 64, 64).training, 64, seed=0)
    expected = list(itertools.islice(batches(crops, 4), 3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = batches(crops, 4, workers=1)
    with time_limit(30):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            first = next(found)  # the worker starts, and keeps the limit
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        arrived = [first, *itertools.islice(found, 2)]
    found.close()
    assert all(map(torch.equal, arrived, expected))


def test_a_request_to_stop_is_seen_while_waiting_for_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert main(tiny(data, straight)) == 0
    draw = Training._next_batch

    def never(training: Training) -> torch.Tensor:
        if training.steps == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)
        return draw(training)

    with monkeypatch.context() as here, time_limit(30):
        here.setattr(Training, "_next_batch", never)
        assert main(tiny(data, halting)) == 130
    assert "stopped after step 2" in capsys.readouterr().err
    assert main(tiny(data, halting, "--resume")) == 0
    ends = [torch.load(out / "model.pt")["model"] for out in (straight, halting)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_one_of_several_processes_gives_its_images_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    with time_limit(30), processes.StopRequest(alone=False) as stop:
        with stop.waiting():
            signal.raise_signal(signal.SIGTERM)  # the images come: the step is made with the others
        assert stop.made
        start = time.monotonic()
        with pytest.raises(processes.StoppedWaiting), stop.waiting():
            time.sleep(60)
    assert time.monotonic() - start < 5


def test_nothing_is_asked_again_once_a_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    before = signal.signal(signal.SIGTERM, lambda *given: received.append(given))
    received: list[object] = []
    try:
        with processes.StopRequest(alone=False):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == []


def test_a_request_between_steps_of_a_process_alone_is_met_before_the_next_batch() -> None:
    with processes.StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(processes.StoppedWaiting), stop.waiting():
            raise AssertionError("waited")
