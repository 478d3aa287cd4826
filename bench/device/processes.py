"""A command in a process of its own that cannot outlive its limit, nor us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.command import ROOT

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

LINUX = sys.platform.startswith("linux")


def run_limited(
    command: Sequence[str],
    limit: float,
    out: Path,
    err: Path,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Exit code, or None where the limit was reached; then all that it had started is ended too.

    Args:
        limit: seconds.
        out, err: files for what it prints.
        environment: variables beside ours.
    """
    with out.open("wb") as printed, err.open("wb") as complained, _orphans_end():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=complained,
            start_new_session=True,  # a group of its own, to be ended as one
            preexec_fn=_dies_with_us(),
        )
        watcher = _outlives_us(process.pid)
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
            watcher.kill()
            watcher.communicate()


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all of its group, which may go on when the process itself has ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _orphans_end() -> Iterator[None]:
    """End what was started within by somebody who is gone, also in a session of its own.

    Linux hands such processes to us, where elsewhere they would be init's.
    """
    if not LINUX:
        yield
        return
    before = _children()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        while found := _children() - before:  # whose children are ours in the next round
            for pid in found:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _children() -> set[int]:
    """Processes that are ours, by the fourth field of /proc/PID/stat; the second is in brackets."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(stat.parent.name))
    return found


def _outlives_us(group: int) -> subprocess.Popen[bytes]:
    """A process that ends the group once we are gone: its pipe from us then closes."""
    command = ["/bin/sh", "-c", 'read -r line; kill -s KILL -- "-$0"', str(group)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _dies_with_us() -> Callable[[], None] | None:
    """What a new process calls so that it is killed when we are, and holds no GPU by itself."""
    if not LINUX:
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
