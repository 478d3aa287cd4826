"""What lies on the device as it is on the host, uploaded where it differs from the last time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from soap_fast.backends.triton.launch.upload import upload_into


class Mirror:
    """One table on the device and the values that it was last made of.

    Attributes:
        table: on the device; where it lies is bound into launches.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self._values: Any = None

    def follow(self, values: Any, rows: Callable[[Any], torch.Tensor]) -> bool:
        """Whether the values are others than the last ones, and the table was uploaded.

        Args:
            values: compared as a whole, and kept.
            rows: makes the table of them, on the host.
        """
        if values == self._values:
            return False
        upload_into(self.table, rows(values))
        self._values = values
        return True

    def forget(self) -> None:
        """Whatever lies on the device, the next values are uploaded."""
        self._values = None
