"""`pytest bench/`: ops of soap_fast under pytest-benchmark. Plain `pytest` leaves them out.

`--benchmark-autosave` keeps a run and `--benchmark-compare --benchmark-compare-fail=median:10%` is
the gate of a later one. `-k` chooses: an op, a class of shapes, a backend, a device.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench import envelope


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError(
            "pytest bench/ needs pytest-benchmark: pip install pytest-benchmark, or make setup"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """The fingerprint of all our results in place of the plugin's, which names the host."""
    machine_info.clear()
    machine_info.update(envelope.machine(), versions=envelope.versions())
