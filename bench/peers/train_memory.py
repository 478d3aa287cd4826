"""Peak memory of training on the CPU: parameters, gradients, activations, state, workspaces.

In a process of its own, from before the model is made to the end of three steps under a
precondition frequency of 2: the first, a plain and a refreshing one. A small model is trained
before, so that libraries are loaded and threads running.
"""

from __future__ import annotations

from typing import Any

from bench.peers.optimizers import around, build
from bench.peers.peak import arguments, in_a_process, peak, reset_peak
from bench.workloads import Settings
from bench.workloads import build as workload_of

STEPS, FREQUENCY = 3, 2
WARM_UP = Settings(batch=1, crop=64, width=8)


def peak_bytes(
    name: str, model: str, device: str, backend: str | None, settings: Settings, limit: float
) -> int | None:
    """None where it cannot be measured, which is said; `limit` is in seconds, for a step."""
    wanted = [name, model, device, backend, list(settings)]
    return in_a_process("bench.peers.train_memory", name, wanted, STEPS * limit)


def _measure(name: str, model: str, device: str, backend: str | None, settings: list[Any]) -> int:
    _steps(name, "demo", device, backend, WARM_UP)
    before = reset_peak()
    _steps(name, model, device, backend, Settings(*settings))
    return peak() - before


def _steps(name: str, model: str, device: str, backend: str | None, settings: Settings) -> None:
    workload = workload_of(model, device, settings)
    optimizer = build(name, workload.params, FREQUENCY, backend)
    for _ in range(STEPS):
        optimizer.zero_grad()
        workload.loss().backward()
        with around(name):
            optimizer.step()


if __name__ == "__main__":
    print(_measure(*arguments()))
