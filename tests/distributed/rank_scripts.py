"""Processes of a test alone, which may die in it: its file, run as a script by two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


@contextmanager
def two_scripts(file: str, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, each given its rank and these arguments; none is left behind."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def join_others(rank: int, store: str, timeout: float) -> None:
    """One of the two: on one thread, in a default group whose waits end after so many seconds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=timeout),
    )
