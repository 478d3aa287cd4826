"""Memory that an optimizer needs beside parameters and gradients, on the CPU: by the system.

Each optimizer has a process of its own that makes three calls under a precondition frequency of 2:
the first, a plain and a refreshing one. `peak_bytes` is the highest resident memory of that process
during these calls minus what was resident before them, with parameters and gradients in place: the
state and whatever else was needed at the worst moment, workspaces of LAPACK and of extensions
included, whoever allocates. Calls on one small matrix come before, so that libraries are loaded
and threads running.
"""

from __future__ import annotations

from bench import shapes
from bench.peers.optimizers import around, build
from bench.peers.peak import arguments, in_a_process, peak, reset_peak

CALLS, FREQUENCY = 3, 2


def peak_bytes(
    name: str, inventory: str, device: str, backend: str | None, limit: float | None = None
) -> int | None:
    """Additional bytes at the peak of a step; None where it cannot be measured, which is said.

    Args:
        name: of an optimizer that can be built here.
        inventory: name or path.
        limit: seconds that a call may take, as in `bench.peers.interleaved`.
    """
    wanted = [name, inventory, device, backend]
    return in_a_process(
        "bench.peers.memory", name, wanted, None if limit is None else CALLS * limit
    )


def _measure(name: str, inventory: str, device: str, backend: str | None) -> int:
    """In the process of its own."""
    warm_up = shapes.Inventory("warm-up", (shapes.Entry("w", (64, 64), True),))
    _calls(name, warm_up, device, backend)
    return _calls(name, shapes.load(inventory), device, backend)


def _calls(name: str, inventory: shapes.Inventory, device: str, backend: str | None) -> int:
    params = inventory.parameters(device)
    optimizer = build(name, params, FREQUENCY, backend)
    inventory.set_gradients(params, seed=1)
    before = reset_peak()
    for call in range(CALLS):
        if call:
            optimizer.zero_grad()  # or two sets of gradients would be there
            inventory.set_gradients(params, seed=1 + call)
        with around(name):
            optimizer.step()
    return peak() - before


if __name__ == "__main__":
    print(_measure(*arguments()))
