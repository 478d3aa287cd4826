"""Processes that take part in tests: started once, and given one function after the other."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from interpreter import hasten

MOST, LIMIT = 4, 90.0  # processes; seconds that a function may take
# Once for all processes. torch's optimizers import _dynamo at the first that is built. Nothing here
# may look for a GPU: what is forked after that cannot use it.
IMPORTED = ["rank_processes", "soap_fast", "torch.distributed.fsdp", "torch._dynamo"]


def send(pipe: Any, what: object) -> None:
    """With the values of small tensors, where `pipe.send` would share memory for each."""
    pipe.send_bytes(pickle.dumps(what))


def received(pipe: Any) -> Any:
    return pickle.loads(pipe.recv_bytes())


def work(rank: int, store: str, jobs: Any) -> None:
    """Carry out what comes down the pipe, in groups of the first 2 and of all processes."""
    torch.set_num_threads(1)
    hasten()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=MOST,
        timeout=timedelta(seconds=30),
    )
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in (1, 2, MOST)}
    while (job := received(jobs)) is not None:
        function, ranks, arguments = job
        try:
            send(jobs, (True, function(groups[ranks], *arguments)))
        except BaseException:
            send(jobs, (False, f"rank {rank}: {traceback.format_exc()}"))
    dist.destroy_process_group()


class Ranks:
    """The processes, as long as nothing goes wrong in them; then others."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders = folders
        self.pipes: list[Any] = []
        self.processes: list[Any] = []

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        store = str(self.folders.mktemp("ranks") / "store")
        for rank in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(rank, store, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(group, *arguments)` returns on each of so many ranks."""
        if not self.processes:
            self.start()
        for pipe in self.pipes[:ranks]:
            send(pipe, (function, ranks, arguments))
        answers = []
        for pipe in self.pipes[:ranks]:
            if not pipe.poll(LIMIT):
                answers.append((False, f"a rank said nothing for {LIMIT} seconds"))
                continue
            answers.append(received(pipe))
        if not all(fine for fine, _ in answers):
            self.stop()
            pytest.fail("\n".join(str(said) for fine, said in answers if not fine))
        return [said for _, said in answers]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.pipes, self.processes = [], []
