"""Progress bars, where tqdm is installed: a GPU machine for `bench device` need not have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, unit: str = "call") -> Iterable[Item]:
    """The items, with a bar on standard error that goes away at the end."""
    return items if tqdm is None else tqdm(items, desc=what, unit=unit, leave=False)
