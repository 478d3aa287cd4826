"""Ranks that meet in the middle of a step, and hear of one that cannot go on.

A rank that fails where others wait for it, or will, tells them that it has: it meets them once in
place of what it could not do. Then all raise, and at their next step compare their clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.agreement import (
    AFTER_ERROR,
    END,
    FIRST_BASES,
    REFRESH,
    Point,
    check_together,
    moment,
    points_of_all,
    unable,
)
from soap_fast.distributed.expected import (
    Before,
    Clock,
    as_scheduled,
    clocks_elsewhere,
    has_exchange,
    options_taken,
)
from soap_fast.distributed.together import Entries, Groups, Step, Steps, Together

TO_DO = {
    FIRST_BASES: "compute their first bases",
    REFRESH: "take part in a refresh: what they raise says why",
    AFTER_ERROR: "go on after an error",
}


class Meeting(Together):
    """Steps in which ranks meet; where they can on the host, also when one of them fails."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._elsewhere: dict[Tensor, Clock] = {}  # where others have taken a step that raised here
        self._last: list[dict[str, Any]] = []  # options of each group, by the last step
        self._met = False  # others, in this step
        self._heard = False  # what is raised: they know it, or cannot be told

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        """Take one step, and tell the others where it raises."""
        self._met, self._heard = False, False
        self.enter(groups, state, backend)
        alone = self._owes_alone()
        before = Before(state) if self.by_host and self.ranks > 1 else None
        if before is not None and self._elsewhere:
            self._follow(before.clocks(groups))
        try:
            step(groups, state)
        except Exception:  # whatever it is, the others would wait for this rank; it goes on up
            if before is not None and not self._heard:
                self._fail(before.clocks(groups), alone)
            raise
        self._conclude()
        if before is not None:
            self._last = list(map(options_taken, groups))

    def _owes_alone(self) -> Callable[[Tensor], bool]:
        """Whether what a step finds owed by a parameter is made up for without the others."""
        return lambda _: False

    def _conclude(self) -> None:
        """This rank has taken the step: where ranks met in it, all have, or hear who has not."""
        if self.by_host and self._met:
            self._end(failed=False)

    def _fail(self, clocks: Mapping[Tensor, Clock], alone: Callable[[Tensor], bool]) -> None:
        """This rank's step has raised: others that meet in it are told now, or else later.

        Args:
            clocks, alone: ahead of the step.
        """
        meets = self._met or self._meets(clocks, alone)
        if meets and not self._end(failed=True):
            return
        self._elsewhere = {**clocks_elsewhere(clocks, self.state), **self._elsewhere}

    def _meets(self, clocks: Mapping[Tensor, Clock], alone: Callable[[Tensor], bool]) -> bool:
        groups = as_scheduled(self.groups, self._last)
        return has_exchange(groups, self.state, clocks, alone=alone)

    def _follow(self, clocks: Mapping[Tensor, Clock]) -> None:
        """After a step that raised here and perhaps nowhere else: meet others at their exchange.

        Raises:
            RuntimeError: on every rank, where others did not raise.
        """
        elsewhere = {p: self._elsewhere.get(p, c) if c.calls else c for p, c in clocks.items()}
        if self._meets(elsewhere, lambda _: True):
            self._agree(AFTER_ERROR, "")
            self._elsewhere = {}
            self._met = False
        else:
            self._elsewhere.update((param, clock.next()) for param, clock in elsewhere.items())

    def forget(self) -> None:
        super().forget()
        self._elsewhere = {}

    def _agree(self, occasion: int, work: object, error: Exception | None = None) -> None:
        """That all ranks are at the same work, and able to go on; waits for them.

        Raises:
            RuntimeError: on every rank, where one is not.
        """
        self._heard = True
        try:
            points = self._points(occasion, work, error is not None)
            failed = unable(points)
            if failed:
                raise RuntimeError(f"ranks {failed} could not {TO_DO[occasion]}") from error
            check_together(points)
        except Exception:  # whatever it is, what is half exchanged is of no use; it goes on up
            self.forget()
            raise
        self._met, self._heard = True, False

    def _end(self, *, failed: bool) -> bool:
        """Of a step with an exchange, on every rank: where one has failed, others hear of it here,
        if they have not at an exchange.

        Returns:
            Whether some rank has taken the step, and so with all that is exchanged. It then owes
            nobody anything.
        """
        points = self._points(END, "", failed)
        taken = any(point.occasion == END and not point.failed for point in points)
        if failed and not taken:
            self.forget()
        return taken

    def _points(self, occasion: int, work: object, failed: bool) -> list[Point]:
        numbers = moment(self.groups, self.state, work, self._owes_alone())
        point = Point(occasion, self.steps, failed, numbers)
        devices = (param.device for group in self.groups for param in group["params"])
        return points_of_all(point, self.group, next(devices, torch.device("cpu")))
