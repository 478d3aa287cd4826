"""Let training with workers fail in every way, in children forked once all is imported.

`python tests/lic/failing.py DATA FOLDER CASE ...` prints, for each case, the exit codes of its
training processes, the seconds from the failure to their end, and how many processes were left
ten seconds after the failure. No process outlives the script.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lic.sharing import arguments

from bench.lic.__main__ import main
from bench.lic.training import Training

LIMIT = 10.0  # seconds


def no_memory(out: Path) -> None:
    raise MemoryError


def full_disk(out: Path) -> None:
    (out / "checkpoint.pt.partial").symlink_to("/dev/full")


def a_worker_killed(out: Path) -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def killed(out: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def told(*numbers: int) -> Callable[[Path], None]:
    def happens(out: Path) -> None:
        for number in numbers:
            signal.raise_signal(number)

    return happens


# What happens before the second step, in how many training processes, and in which of them.
CASES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "no memory": (no_memory, 1, 0),
    "full disk": (full_disk, 1, 0),
    "a worker killed": (a_worker_killed, 1, 0),
    "SIGTERM": (told(signal.SIGTERM), 1, 0),
    "SIGTERM twice": (told(signal.SIGTERM, signal.SIGTERM), 1, 0),
    "Ctrl-C": (told(signal.SIGINT), 1, 0),
    "Ctrl-C twice": (told(signal.SIGINT, signal.SIGINT), 1, 0),
    "killed": (killed, 1, 0),
    "no memory in one of two": (no_memory, 2, 1),
}


def fail(case: str, out: Path, rank: int) -> None:
    happens, _, where = CASES[case]
    step = Training.step

    def failing(training: Training) -> object:
        if training.steps == 1 and rank == where:
            (out / "failed").write_text(str(time.monotonic()))
            happens(out)
        return step(training)

    Training.step = failing  # type: ignore[method-assign]


def living(group: int) -> int:
    """Processes of the group that are more than a name."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = status.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # ended meanwhile
            continue
        count += of == str(group) and state not in "ZX"
    return count


def child(case: str, data: Path, out: Path, rank: int, port: int) -> int:
    """The exit code of `train`; an exception leaves this script as it would leave the command."""
    world = CASES[case][1]
    os.setpgid(0, 0)
    handle = os.open(out / f"said.{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    fail(case, out, rank)
    given = arguments(data, out, "soap_fast")
    return main([*given, "--workers=2", "--checkpoint-every=1", "--evaluate-every=4"])


def followed(children: list[int], out: Path) -> dict[str, object]:
    """Wait for the children; as torchrun does, tell the others once one of them has failed."""
    codes: dict[int, int | None] = dict.fromkeys(children)
    start, end = time.monotonic(), None
    try:
        while time.monotonic() < start + 60:
            for one in [one for one, code in codes.items() if code is None]:
                pid, status = os.waitpid(one, os.WNOHANG)
                if pid:
                    codes[one] = os.waitstatus_to_exitcode(status)
                    if codes[one]:
                        for other in [o for o, code in codes.items() if code is None]:
                            os.kill(other, signal.SIGTERM)
            failed = out / "failed"
            since = time.monotonic() - float(failed.read_text() or "inf") if failed.exists() else 0
            if end is None and None not in codes.values():
                end = since
            left = sum(map(living, children))
            if (end is not None and not left) or since > LIMIT:
                break
            time.sleep(0.02)
        return {"codes": list(codes.values()), "seconds": end, "left": left}
    finally:
        for one in children:
            try:
                os.killpg(one, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
            if codes[one] is None:
                os.waitpid(one, 0)


def run(cases: list[str], data: Path, folder: Path) -> int | None:
    """Of this process None, of a child its exit code."""
    found = {}
    # What is imported late, the children then have.
    assert main([*arguments(data, folder / "whole", "soap_fast"), "--evaluate-every=4"]) == 0
    gc.freeze()  # else the collection at each child's end copies the parent's pages, for seconds
    for case in cases:
        out = folder / case
        out.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(CASES[case][1]):
            pid = os.fork()
            if not pid:
                return child(case, data, out, rank, port)
            children.append(pid)
        found[case] = followed(children, out)
    print(json.dumps(found))
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, *cases = sys.argv[1:]
    sys.exit(run(cases, Path(data), Path(folder)))
