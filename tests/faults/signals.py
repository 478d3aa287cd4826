"""Signals of a process of its own, at moments that nobody chose, and what handlers do at them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from types import FrameType

from straight import Saved
from subjects import SOAP

# Of those that trainers are told by: to save, to end, that a worker has died, that time is up.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD")
NUMBERS = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
EACH = 3  # signals a moment
SENDER = """
import os, sys, time
for line in sys.stdin:
    start = time.perf_counter()
    for one in line.split():
        delay, number = one.split(":")
        while time.perf_counter() < start + float(delay):
            pass
        os.kill(os.getppid(), int(number))
    print(flush=True)
"""


class Sender:
    """Sends this process signals; `with sender:` ends it."""

    def __init__(self, chosen: random.Random) -> None:
        self.chosen = chosen

    def __enter__(self) -> Sender:
        command = [sys.executable, "-c", SENDER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def send(self, within: float) -> None:
        """Some from now on, within so many seconds."""
        delays = sorted(self.chosen.uniform(0, within) for _ in range(EACH))
        numbers = [self.chosen.choice(NUMBERS) for _ in delays]
        both = zip(delays, numbers, strict=True)
        self.process.stdin.write(" ".join(f"{d}:{n}" for d, n in both) + "\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Until all are sent."""
        self.process.stdout.readline()


class Told(Exception):
    """What a handler raises, and nothing else."""


class Handlers:
    """One for each signal: it saves, raises, or does both; at most once it raises.

    Attributes:
        saved: what it has saved.
        refused: with what words it was not let.
    """

    def __init__(self, optimizer: SOAP, params, acts: list[str]) -> None:
        self.optimizer, self.params, self.acts = optimizer, params, acts
        self.saved: list[Saved] = []
        self.refused: list[str] = []
        self.waiting = True

    def __enter__(self) -> Handlers:
        self.before = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.act(self.acts[number % len(self.acts)])

    def act(self, act: str) -> None:
        if not self.waiting:
            return
        if "save" in act:
            try:
                self.saved.append(Saved.of(self.optimizer, self.params))
            except RuntimeError as error:
                self.refused.append(str(error))
        if "raise" in act:
            self.waiting = False
            raise Told
