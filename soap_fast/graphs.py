"""Steps replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from soap_fast.interrupts import held
from soap_fast.step.schedule import falls_due, is_staggered

if TYPE_CHECKING:
    from soap_fast.soap import SOAP

__all__ = ["GraphedStep"]


class GraphedStep:
    """What comes before a step, and the step, replayed from CUDA graphs.

    There are two graphs, one of plain calls and one of calls that end with a refresh; with
    `refresh_schedule="staggered"` it is one. The first calls of each kind are taken as they come,
    on a stream of their own, and then captured::

        step = soap_fast.GraphedStep(optimizer, forward_and_backward)
        for images in loader:
            static_images.copy_(images)
            loss = step()

    Other threads may use the device during a capture, one that pins memory for a DataLoader say.

    `lr` is a tensor on the parameters' device, changed in place; other options are kept as they
    were at the capture. Parameters all have gradients, at every call.

    When the state is loaded anew, a parameter begins later, or a step has raised, graphs are
    captured again. A step taken by `optimizer.step()` in between is a step like any other.

    Args:
        optimizer: a SOAP whose parameters are on one CUDA device.
        body: what to repeat before the step, reading tensors that stay where they are; it sets
            gradients to None before its backward pass. None captures the step alone, of gradients
            that stay where they are.

    Raises:
        RuntimeError: the optimizer shares its work with other processes.
    """

    WARM_UP = 3  # calls: the first one of every tensor, one that makes tables, one that repeats

    def __init__(self, optimizer: SOAP, body: Callable[[], Any] | None = None) -> None:
        optimizer._sharing.check_no_graph()
        self.optimizer, self.body = optimizer, body
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._results: dict[bool, Any] = {}
        self._taken = {True: 0, False: 0}  # calls outside of graphs, by whether they refresh
        self._stream: torch.cuda.Stream | None = None
        self._generation = optimizer._generation

    def __call__(self) -> Any:
        """Take one step. Returns what `body` returned; of a replay, the same tensors as before.

        Raises:
            RuntimeError: the step cannot be captured, and why; or one taken outside of a graph was
                left between its launches.
        """
        self.optimizer._backend.check_whole()
        if self._generation != self.optimizer._generation:  # the state has moved: graphs are void
            self._generation = self.optimizer._generation
            self._forget()
        if self.optimizer._underway:  # it was left, and may owe what no graph has in it
            self._forget()  # nor is there the memory that graphs work in, if a refresh has failed
            return self._on_side_stream()
        refreshes = self.refreshes_next()
        if refreshes not in self._graphs:
            if self._taken[refreshes] < self._before_capture(refreshes):
                self._taken[refreshes] += 1
                return self._on_side_stream()
            self.optimizer.prepare_capture()
            self._capture(refreshes)
        with held:  # what was replayed is counted
            self._graphs[refreshes].replay()
            self.optimizer.replayed()
        return self._results[refreshes]

    def _before_capture(self, refreshes: bool) -> int:
        """Calls of a kind to be taken before it is captured; of staggered ones a whole period."""
        if self._staggered():
            return self.WARM_UP + int(self.optimizer.param_groups[0]["precondition_frequency"])
        return 1 if refreshes else self.WARM_UP

    def _staggered(self) -> bool:
        return any(is_staggered(g["refresh_schedule"]) for g in self.optimizer.param_groups)

    def refreshes_next(self) -> bool:
        """Whether the coming call ends with a refresh, by the clock that all parameters share.

        False under the staggered schedule, where any call may.
        """
        if self._staggered():
            return False
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                calls: int = self.optimizer.state.get(param, {}).get("calls", 0)
                return calls > 0 and falls_due(calls, int(group["precondition_frequency"]))
        return False

    def _call(self) -> Any:
        result = self.body() if self.body is not None else None
        self.optimizer.step()
        return result

    def _on_side_stream(self) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._call()
        current.wait_stream(self._stream)
        return result

    def _forget(self) -> None:
        self._graphs.clear()
        self._taken = {True: 0, False: 0}

    def _capture(self, refreshes: bool) -> None:
        pool = next((graph.pool() for graph in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # in the default one calls of CUDA by other threads spoil the capture
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode=mode):
            self._results[refreshes] = self._call()
        self._graphs[refreshes] = graph
