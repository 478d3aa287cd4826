"""Run the demo, kill it by SIGKILL at random moments, resume it, and compare with a run left alone.

`python tests/faults/killing.py FOLDER KILLS SEED` prints what happened as one line of JSON. Every
run is `python -m bench.lic demo` in a process of its own, forked once all is imported: of 100
runs one would else spend 4 minutes on importing torch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.lic.__main__ import main
from bench.lic.optimizers import BUILDERS
from bench.lic.training.runs import CHECKPOINT, MODEL

STEPS = 24
OPTIMIZER = "soap_fast"


def photos(folder: Path) -> Path:
    """Two images that are smooth, coloured and small."""
    folder.mkdir()
    y, x = np.mgrid[:64, :80] / 20
    for index in range(2):
        planes = [np.sin((c + 1) * x + index) * np.cos(y + c) for c in range(3)]
        pixels = (127.5 * (1 + np.stack(planes, axis=2))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def arguments(data: Path, out: Path) -> list[str]:
    options = {
        "data": data, "out": out, "optimizers": OPTIMIZER, "steps": STEPS, "checkpoint-every": 2,
        "batch": 1, "factor": 1 / 48, "lr": 2e-3, "precondition-frequency": 3, "threads": 1,
    }  # fmt: skip
    return ["demo", *(f"--{name}={value}" for name, value in options.items())]


def started(command: list[str]) -> int:
    """The command in a process of its own, silent; its id."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(main(command))


def finished(child: int, seconds: float) -> bool:
    """Whether it ended well by itself within so many seconds; else it has been killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return ended_well(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status) and ended_well(status)


def ended_well(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"the demo ended with {code}"
    return True


def outcome(out: Path) -> dict:
    """All that a run leaves but times: weights, and each step's and evaluation's numbers."""
    history = torch.load(out / OPTIMIZER / CHECKPOINT, weights_only=True)["training"]["history"]
    numbers = {name: history[name] for name in ("evaluated_at", "evaluations")}
    numbers["losses"] = history["losses"].tolist()
    return {"model": torch.load(out / OPTIMIZER / MODEL, weights_only=True)["model"], **numbers}


def same(one: dict, other: dict) -> bool:
    weights = one["model"], other["model"]
    equal = weights[0].keys() == weights[1].keys()
    equal = equal and all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    return equal and all(one[key] == other[key] for key in one if key != "model")


def import_what_is_imported_late() -> None:
    """Else each run does it again: 2 seconds in which there is nothing to kill."""
    Image.init()
    for name in ("adam", OPTIMIZER):
        BUILDERS[name]([torch.nn.Parameter(torch.zeros(2))], 1e-3, precondition_frequency=1).step()


def kill_and_resume(folder: Path, kills: int, seed: int) -> dict[str, int]:
    torch.set_num_threads(1)
    import_what_is_imported_late()
    data, moments = photos(folder / "photos"), random.Random(seed)
    start = time.monotonic()
    assert finished(started(arguments(data, folder / "straight")), 600)
    longest = time.monotonic() - start
    straight = outcome(folder / "straight")
    assert len(straight["losses"]) == STEPS

    halting, left = folder / "halting", kills
    counts = {"kills": 0, "while_writing": 0, "without_a_checkpoint": 0, "runs": 0, "equal": 0}
    while left or halting.exists():
        command = arguments(data, halting)
        if (halting / OPTIMIZER / CHECKPOINT).exists():
            command.append("--resume")
        if finished(started(command), moments.uniform(0, longest) if left else 600):
            counts["runs"] += 1
            counts["equal"] += same(outcome(halting), straight)
            shutil.rmtree(halting)
        else:
            left -= 1
            counts["kills"] += 1
            counts["while_writing"] += bool([*halting.rglob("*.partial")])
            counts["without_a_checkpoint"] += not (halting / OPTIMIZER / CHECKPOINT).exists()
            halting.mkdir(exist_ok=True)
    return counts


if __name__ == "__main__":
    target, number, chosen = sys.argv[1:]
    print(json.dumps(kill_and_resume(Path(target), int(number), int(chosen))))
