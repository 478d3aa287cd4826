"""Train by one process and by two that share each batch, children forked once all is imported.

`python tests/lic/sharing.py DATA FOLDER` leaves in FOLDER what `bench.lic train` leaves, of runs
`alone`, `shared`, and `halted`, which was shared, stopped after 2 steps and resumed, by optimizer;
and what each process of `shared` said, in `said.RANK`. Of soap_fast also `split`, in which the
processes share its refreshes.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch

from bench.lic.__main__ import main
from bench.lic.models import entropy
from bench.lic.training import Training

PROCESSES = 2

# LALIC has parameters that never get a gradient; an evaluation writes to them, in one process.
# At its small lambda gradients are shorter than 1: clipped, a sum of them would pass for a mean.
RUNS = {
    "torch.optim:SGD": ("lalic", 1 / 32, 1e-2, 2e-6),
    "soap_fast": ("hyperprior", 1 / 24, 1e-3, 0.013),
}


def arguments(data: Path, out: Path, optimizer: str) -> list[str]:
    model, factor, rate, lam = RUNS[optimizer]
    options = {
        "data": data, "out": out, "model": model, "factor": factor, "optimizer": optimizer,
        "lr": rate, "lambda": lam, "schedule": "plateau", "patience": 0, "crop": 64, "batch": 4,
        "steps": 4,
        "checkpoint-every": 2, "precondition-frequency": 2, "evaluate-every": 2, "threads": 1,
    }  # fmt: skip
    return ["train", *(f"--{name}={value}" for name, value in options.items())]


def the_same_noise_for_all(x: torch.Tensor) -> torch.Tensor:
    """Each process draws its own, and other numbers for half a batch than for a whole one."""
    return x + 0.3


def halt_after_two_steps() -> None:
    step = Training.step

    def halting(training: Training) -> object:
        if training.steps == 2:
            raise KeyboardInterrupt
        return step(training)

    Training.step = halting  # type: ignore[method-assign]


def forked(rank: int, port: int, said: Path, command: list[str], halt: bool) -> int:
    child = os.fork()
    if child:
        return child
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    if halt:
        halt_after_two_steps()
    os._exit(main(command))


def run_shared(said: Path, command: list[str], code: int = 0) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        forked(rank, port, said.with_suffix(f".{rank}"), command, code != 0)
        for rank in range(PROCESSES)
    ]
    for child in children:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == code, (ended, said.with_suffix(".0").read_text())


def train_all(data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    entropy.add_noise = the_same_noise_for_all
    for optimizer in RUNS:
        out = folder / optimizer
        out.mkdir(parents=True)
        # In this process: what is imported late, for 2 seconds, the children then have.
        assert main(arguments(data, out / "alone", optimizer)) == 0
        run_shared(out / "said", arguments(data, out / "shared", optimizer))
    split = [*arguments(data, out / "split", optimizer), "--sharding=refresh"]
    run_shared(out / "split_said", split)
    halted = arguments(data, out / "halted", optimizer)
    run_shared(out / "halted_said", halted, code=130)
    run_shared(out / "halted_said", [*halted, "--resume"])
    owned = [*arguments(data, out / "owned", optimizer), "--sharding=state"]
    run_shared(out / "owned_said", owned, code=130)
    run_shared(out / "owned_said", [*owned, "--resume"])


if __name__ == "__main__":
    train_all(*map(Path, sys.argv[1:]))
