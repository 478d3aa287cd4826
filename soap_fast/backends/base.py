"""What a backend is asked in a step, and the answers of one that has nothing to do there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from soap_fast.distributed import ALONE, Alone
from soap_fast.step.call import Scaling, TensorCall
from soap_fast.step.carry import Changes, carry_each, refresh_tensors
from soap_fast.step.eigh import Pairs
from soap_fast.step.modes import grams
from soap_fast.step.plan import TensorPlan
from soap_fast.step.refresh import Refreshed
from soap_fast.step.state import Owner, Stacks, State, allocate

BestOn = Callable[[torch.device], str]  # the name of the best backend of a device
PLAIN_REFRESH = "in plain torch, stack by stack"


class Routed(NamedTuple):
    """Places of calls: of those that are served, and of the others."""

    served: list[int]
    others: list[int]


def routed(calls: Sequence[TensorCall], serves: Callable[[TensorCall], bool]) -> Routed:
    """Which of these calls are served."""
    found = Routed([], [])
    for place, call in enumerate(calls):
        found[not serves(call)].append(place)
    return found


class Backend:
    """The parts of a step that backends carry out, in the order of a step."""

    name: str
    sharing: Alone = ALONE  # or who else computes first bases and refreshes

    def name_on(self, device: torch.device) -> str:
        """Name of the backend that steps a device's tensors, but for those that it cannot."""
        return self.name

    def alike_on(self, device: torch.device) -> str:
        """What of it must be the same on all ranks that share work."""
        return self.name_on(device)

    def stepped_by(
        self, param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan, lr: float | torch.Tensor
    ) -> tuple[str, str]:
        """Name of the backend that steps a tensor, and where it is not `name_on`'s why."""
        raise NotImplementedError

    def refreshes_on(self, device: torch.device) -> str:
        """How bases are refreshed on a device, in words."""
        raise NotImplementedError

    def refuses(self, param: torch.Tensor) -> str | None:
        """Why this backend, asked for by name, cannot step a parameter; None if it can."""
        return None

    def refuses_call(self, call: TensorCall) -> str | None:
        """The same for one call: its gradient, and what is planned for it."""
        return None

    def steady_step(self, groups: Sequence[dict[str, Any]], state: State, scaling: Scaling) -> bool:
        """Take a step in a shorter way than `SOAP.step` does; False where there is none."""
        return False

    def after_step(
        self, groups: Sequence[dict[str, Any]], state: State, calls: Sequence[TensorCall]
    ) -> None:
        """Told after every step that was taken the whole way."""

    def forget(self, devices: Iterable[torch.device] = ()) -> None:
        """The state was replaced: nothing known of it holds any more.

        Args:
            devices: where the new one was written, each on its current stream.
        """

    def follow_streams(self, devices: Iterable[torch.device] = ()) -> None:
        """Ahead of reading what steps have written: current streams wait for those of the steps.

        Args:
            devices: those whose streams work on the state from here on.
        """

    def check_whole(self) -> None:
        """Ahead of reading the state: RuntimeError where a step was left between its launches.

        What the last step left to come is waited for and written.
        Current streams then wait for those that work on the state. Of the Triton backend alone,
        whose launches reach memory that torch does not know of; what torch's operators do on
        several streams is ordered by the caller, as under torch's optimizers.
        """
        self.sharing.finish(self)

    def prepare_capture(self, calls: Sequence[TensorCall]) -> None:
        """What is due when is uploaded ahead of a capture."""

    def captured(self, calls: Sequence[TensorCall]) -> AbstractContextManager[None]:
        """Within it these calls are launched into a CUDA graph.

        Raises:
            RuntimeError: they are under a schedule that this backend cannot follow on the device.
        """
        if any(call.is_staggered for call in calls):
            raise RuntimeError(
                "a staggered schedule refreshes other bases at every call, and only "
                "backend='triton' can choose them within a graph: use refresh_schedule='periodic'"
            )
        return nullcontext()

    def replayed(self) -> None:
        """Told after a graph with a captured step has been replayed."""

    def usable(self, calls: Sequence[TensorCall]) -> list[bool]:
        """Whether each gradient may begin a tensor's state. Waits for the device."""
        flags = [
            call.is_usable(call.gather()) for call in calls
        ]  # all launched before the first read
        return [bool(flag) for flag in flags]

    def first_bases(self, calls: Sequence[TensorCall]) -> Stacks:
        """K = (1 - b_s) g gᵀ and its eigenvectors for the factors of tensors on their first call.

        Every gradient is usable. No state is touched: what is returned belongs to none yet.
        """
        stacks = allocate((call.param, call.plan) for call in calls)
        for stack in stacks.values():
            stack.Q = stack.K  # bases bring memory of their own, and solvers need theirs
        places = {
            owner: stack.K[slot]
            for stack in stacks.values()
            for slot, owner in enumerate(stack.owners)
        }
        for call in calls:
            weight = 1 - call.options.shampoo_beta
            for mode, k in enumerate(grams(call.gather(), call.plan)):
                if k is not None:
                    places[Owner(call.param, mode)].copy_(weight * k)
        everything = [
            torch.arange(len(stack.owners), dtype=torch.int32, device=stack.K.device)
            for stack in stacks.values()
        ]
        factors = [stack.K for stack in stacks.values()]
        owners = [stack.owners for stack in stacks.values()]
        bases = self.sharing.first_bases(self.eigh, factors, everything, owners)
        for stack, q in zip(stacks.values(), bases, strict=True):
            stack.Q = q
        return stacks

    def update(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]:
        """One step for each tensor after its first call. Returns which were taken, [] bool each."""
        raise NotImplementedError

    def make_up(self, calls: Sequence[TensorCall]) -> None:
        """Ahead of the update of these calls: the refreshes that steps before still owe."""
        owing = [(call, call.owed.taken) for call in calls if call.owed is not None]
        self.refresh([call for call, _ in owing], [flag for _, flag in owing])

    def refresh(self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor]) -> None:
        """Refresh the bases of these tensors that are due, each unless its step was left out."""
        refresh_tensors(calls, taken, self.shared_refresh, self.carry)

    def carry(
        self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor], changes: Changes
    ) -> None:
        """Write new bases and carry moments over to them."""
        carry_each(calls, taken, changes)

    def eigh(self, factors: list[torch.Tensor], selections: list[torch.Tensor]) -> Pairs:
        """As `eigh_eager`."""
        raise NotImplementedError

    def refresh_op(
        self,
        factors: list[torch.Tensor],
        bases: list[torch.Tensor],
        selections: list[torch.Tensor],
        allowed: list[torch.Tensor],
        tolerance: float,
    ) -> Refreshed:
        """As `refresh_eager`."""
        raise NotImplementedError

    def shared_refresh(self, *arguments: Any) -> Refreshed | None:
        """`refresh_op` by all processes that share the work; None where it comes later."""
        return self.sharing.refresh(self.refresh_op, *arguments)
