"""A command in a process of its own that cannot outlive its limit, nor us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.command import ROOT

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_limited(command: Sequence[str], limit: float, out: Path, err: Path) -> int | None:
    """Exit code, or None where the limit was reached; then all that it had started is ended too.

    Args:
        limit: seconds.
        out, err: files for what it prints.
    """
    with out.open("wb") as printed, err.open("wb") as complained:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
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


def _outlives_us(group: int) -> subprocess.Popen[bytes]:
    """A process that ends the group once we are gone: its pipe from us then closes."""
    command = ["/bin/sh", "-c", 'read -r line; kill -s KILL -- "-$0"', str(group)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _dies_with_us() -> Callable[[], None] | None:
    """What a new process calls so that it is killed when we are, and holds no GPU by itself."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
