"""What is seen on standard error while training: a bar on a terminal, a line now and then else."""

from __future__ import annotations

import sys

from tqdm import tqdm

from bench.lic.training.held_out import Quality
from bench.lic.training.processes import started


def say(line: str) -> None:
    """The line on standard error, once: of several processes the first says it."""
    if started()[0] == 0:
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Loss, bpp and PSNR of one run; starts at `done` of `steps`."""

    def __init__(self, name: str, done: int, steps: int, shown: bool = True) -> None:
        self.name, self.steps, self.held_out = name, steps, ""
        hidden = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=steps, initial=done, desc=name, disable=hidden)

    def stepped(self, batch: Quality) -> None:
        self.bar.set_postfix_str(_describe(batch) + self.held_out, refresh=False)
        self.bar.update()

    def evaluated(self, step: int, quality: Quality) -> None:
        self.held_out = f" | held out {quality.loss:.3f}"
        if self.bar.disable:
            say(f"{self.name} {step}/{self.steps}: held out {_describe(quality)}")

    def close(self) -> None:
        self.bar.close()


def _describe(quality: Quality) -> str:
    return f"loss {quality.loss:.3f}, {quality.bpp:.3f} bpp, {quality.psnr:.2f} dB"
