"""Processes that take part in tests, for the whole of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rank_processes import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    started = Ranks(tmp_path_factory)
    yield started
    started.stop()
    if before is None:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
