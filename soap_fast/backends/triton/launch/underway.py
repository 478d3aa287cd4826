"""Whether the state lies between two steps, where nobody may read it."""

from __future__ import annotations

from collections.abc import Iterable

from soap_fast.backends.triton.launch.launcher import Launch, Launcher
from soap_fast.interrupts import at_once

UNDERWAY = (
    "a step is underway, and parameters and state are partly those of the step before: do this "
    "after the step has ended"
)
HALFWAY = (
    "a launch failed in the middle of a step, and parameters and state are partly those of the "
    "step before: load the last state_dict, and the parameters that were saved with it"
)


class Underway:
    """Of one engine.

    Attributes:
        halfway: whether a step is underway, or was left before its last launch.
        failed: it was left.
        refreshing: whether launches of a refresh are underway.
    """

    def __init__(self) -> None:
        self.halfway = self.failed = self.refreshing = False

    def check_whole(self) -> None:
        """RuntimeError where the state lies between two steps, by the reason."""
        if self.halfway or self.refreshing:
            raise RuntimeError(HALFWAY if self.failed else UNDERWAY)

    def launch(
        self, launcher: Launcher, launches: Iterable[Launch], *counted: Iterable[object]
    ) -> None:
        """Make the launches that write state, and what belongs to the last one, for `at_once`."""
        self.failed, self.halfway = False, True
        try:
            for launch in launches:
                launcher(launch)
            at_once(*counted, map(setattr, (self,), ("halfway",), (False,)))
        except BaseException:
            self.failed = self.halfway
            raise
