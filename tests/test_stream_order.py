"""In what order a step on another stream does things, told without a GPU.

Streams are names, launches and operators are noted with the stream that they would go to.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from streams import parameters, set_gradients, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soap_fast import SOAP, GraphedStep
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.launch import mirror, stream_order
from soap_fast.backends.triton.launch.launcher import Launch, RecordingLauncher
from soap_fast.step import capture
from soap_fast.step.call import UNSCALED

SHAPES = ((6, 4, 3, 3), (5,), (8, 8))


@dataclass
class Stream:
    name: str
    waits: Callable[[Stream, Stream], None]

    def wait_stream(self, other: Stream) -> None:
        self.waits(self, other)


@dataclass
class Device:
    """What streams got, in order.

    Attributes:
        log: (stream, what): "launch", "wait" with the other stream, "touch" with the operator.
        memory: data pointers of what lies on the device and is in use for good.
        known: by stream, data pointers that the allocator knows to be in use there.
    """

    log: list[tuple[str, str]] = field(default_factory=list)
    memory: set[int] = field(default_factory=set)
    known: dict[str, set[int]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    name: str = "A"

    def current(self, device: torch.device) -> Stream:
        return self.streams.setdefault(self.name, Stream(self.name, self._waits))

    def _waits(self, stream: Stream, other: Stream) -> None:
        self.log.append((stream.name, f"wait {other.name}"))

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        self.known.setdefault(stream.name, set()).add(pointer(tensor))

    def allocated(self, new: set[int]) -> None:
        """On the current stream, where it needs no telling."""
        for known in self.known.values():
            known -= new
        self.known.setdefault(self.name, set()).update(new)

    def assert_waits_first(self, stream: str, other: str) -> None:
        """The first thing that this stream got was to wait for the other, of several things."""
        own = [what for name, what in self.log if name == stream]
        assert own[:1] == [f"wait {other}"], own[:5]
        assert len(own) > 1


def pointer(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def alive() -> list[torch.Tensor]:
    # By their own types: other tests leave fake tensors, which have no memory, and weak proxies.
    plain = (torch.Tensor, torch.nn.Parameter)
    return [x for x in gc.get_objects() if type(x) in plain and x.layout == torch.strided]


class Watch(TorchDispatchMode):
    """Notes every operator on memory of the device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
        if any(pointer(x) in self.device.memory for x in tensors):
            self.device.log.append((self.device.name, f"touch {op}"))
        return op(*args, **(kwargs or {}))


class Launcher(RecordingLauncher):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __call__(self, launch: Launch) -> None:
        super().__call__(launch)
        self.device.log.append((self.device.name, f"launch {launch.op}"))


@pytest.fixture
def device(monkeypatch) -> Iterator[Device]:
    fake = Device()
    monkeypatch.setattr(stream_order, "current", fake.current)
    record = lambda tensor, stream: fake.record(tensor, stream)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", record, raising=False)
    real = mirror.upload_into

    def upload_into(target: torch.Tensor, table: torch.Tensor) -> None:
        fake.log.append((fake.name, "upload"))
        real(target, table)

    monkeypatch.setattr(mirror, "upload_into", upload_into)
    return fake


class Run:
    """An optimizer whose kernels are noted, after some calls on stream A."""

    def __init__(self, device: Device, calls: int = 3, **options) -> None:
        options = {"lr": torch.tensor(1e-3), "precondition_frequency": 20} | options
        self.device, self.params = device, parameters(SHAPES)
        self.optimizer = SOAP(self.params, backend="eager", **options)
        train(self.optimizer, self.params, [0])
        self.launcher = Launcher(device)
        self.optimizer._backend = TritonBackend(launcher=self.launcher)
        train(self.optimizer, self.params, range(1, calls))
        device.allocated({pointer(x) for x in alive()})

    def tensors(self) -> list[torch.Tensor]:
        """What launches name, and by addresses in tables: parameters and state."""
        named = [x for launch in self.launcher.launched for x in launch.arguments]
        begun = {p: entry for p, entry in self.optimizer.state.items() if entry["calls"] > 1}
        states = [x for entry in begun.values() for x in tree_leaves(entry)]
        found = [*named, *states, *begun]
        return [x for x in found if isinstance(x, torch.Tensor) and x.numel()]

    def on(self, stream: str, act: Callable[[], object], *, watched: bool = True) -> None:
        """Do something on this stream, with gradients of its own, and look at the order.

        Args:
            watched: operator by operator, which ends a steady state.
        """
        self.device.name = stream
        set_gradients(self.params, len(self.launcher.launched))
        self.device.memory = {pointer(x) for x in self.tensors()}
        self.device.log.clear()
        # Kept until the end, so that nothing new lies where one of them did.
        kept = alive()
        old = {pointer(x) for x in kept}
        self.launcher.launched.clear()
        with Watch(self.device) if watched else nullcontext():
            act()
        self.device.allocated({pointer(x) for x in alive()} - old)
        if self.launcher.launched:
            missing = {pointer(x) for x in self.tensors()} - self.device.known[stream]
            shapes = [tuple(x.shape) for x in kept if pointer(x) in missing]
            assert not missing, f"the allocator may hand them out: {shapes}"


@pytest.fixture
def run(device) -> Callable[..., Run]:
    return lambda **options: Run(device, **options)


def test_a_steady_step_waits_before_it_uploads(run, device):
    steps = run()
    for rate, stream, other in ((1e-3, "B", "A"), (2e-3, "A", "B"), (2e-3, "B", "A")):
        steps.optimizer.param_groups[0]["lr"] = torch.tensor(rate)
        steady = steps.optimizer._backend.steady
        steps.on(stream, steps.optimizer.step, watched=False)
        assert steps.optimizer._backend.steady is steady is not None
        device.assert_waits_first(stream, other)
        assert (stream, "upload") in device.log
    steps.on("B", steps.optimizer.step, watched=False)
    assert ("B", "wait A") not in device.log


def test_a_whole_step_waits_before_it_uploads(run, device):
    steps = run()

    def without_a_gradient():
        steps.params[1].grad = None
        steps.optimizer.step()

    steps.on("B", without_a_gradient)
    device.assert_waits_first("B", "A")
    steps.on("C", steps.optimizer.step)
    device.assert_waits_first("C", "B")


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
def test_a_refresh_waits_and_its_tables_are_known_to_be_read(run, device, schedule):
    """Those of an earlier refresh, on another stream, too."""
    steps = run(calls=5, precondition_frequency=2, refresh_schedule=schedule)
    for stream, other in (("B", "A"), ("A", "B"), ("B", "A"), ("C", "B")):
        steps.on(stream, steps.optimizer.step)
        device.assert_waits_first(stream, other)
    assert "launch count" in [what for _, what in device.log] or schedule == "periodic"


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
def test_what_refreshes_that_recur_write_to_is_known_there(run, device, schedule):
    """Flags and results, which stay from one turn to the next."""
    steps = run(calls=6, precondition_frequency=2, refresh_schedule=schedule)
    for stream in "BAB":
        for _ in range(2):
            steps.on(stream, steps.optimizer.step, watched=False)
        (engine,) = steps.optimizer._backend.engines.values()
        flags = [turn.taken for turn in engine.turns]
        results = [x for due in engine.refresher.alive for x in (due.flags, *due.results.in_use())]
        assert flags
        assert results
        assert {pointer(x) for x in (*flags, *results)} <= device.known[stream]


def test_a_newcomer_waits_before_stacks_are_copied_and_moments_move(run, device):
    steps = run()
    newcomer = parameters(((8, 8),), seed=1)
    steps.optimizer.add_param_group({"params": newcomer})
    steps.params += newcomer
    for stream, other in (("B", "A"), ("C", "B")):  # its first call, and the engine that serves it
        steps.on(stream, steps.optimizer.step)
        device.assert_waits_first(stream, other)


def test_state_that_a_user_has_replaced_is_adopted_after_waiting(run, device):
    steps = run()
    entry = steps.optimizer.state[steps.params[0]]
    entry["exp_avg"] = entry["exp_avg"].contiguous().clone()
    steps.optimizer._backend.forget_steadiness()
    steps.on("B", steps.optimizer.step)
    device.assert_waits_first("B", "A")


def test_an_engine_alone_waits_before_it_adopts(run, device):
    """Also where nothing has come before it in the step."""
    steps = run()
    backend = steps.optimizer._backend
    calls = list(steps.optimizer._calls(UNSCALED))
    for call in calls:
        call.state["exp_avg"] = call.state["exp_avg"].contiguous().clone()
    steps.on("B", lambda: backend._engine(torch.device("cpu"), calls))
    device.assert_waits_first("B", "A")


def test_a_step_after_loading_waits_for_both(run, device):
    """For who loaded the state, and that one for the last step, which writes parameters."""
    steps = run()
    saved = steps.optimizer.state_dict()
    steps.on("B", lambda: steps.optimizer.load_state_dict(saved))
    assert ("B", "wait A") in device.log
    steps.on("C", steps.optimizer.step)
    device.assert_waits_first("C", "B")


def test_a_state_loaded_before_any_step_is_waited_for(device):
    params = parameters(SHAPES)
    donor = SOAP(params, backend="eager")
    train(donor, params, range(2))
    optimizer = SOAP(params, backend="eager")
    optimizer._backend = TritonBackend(launcher=Launcher(device))
    optimizer.load_state_dict(donor.state_dict())
    device.name = "B"
    train(optimizer, params, [2])
    device.assert_waits_first("B", "A")


def test_saving_waits_and_is_waited_for(run, device):
    steps = run()
    steps.on("B", steps.optimizer.state_dict)
    device.assert_waits_first("B", "A")
    steps.on("A", steps.optimizer.step)
    device.assert_waits_first("A", "B")


def test_counters_are_read_after_waiting(run, device):
    steps = run()
    steps.on("B", steps.optimizer.stats)
    device.assert_waits_first("B", "A")


def test_a_replay_waits_and_is_waited_for(run, device, monkeypatch):
    """What a staggered graph reads is known to be read on the stream of the replay."""
    steps = run(calls=6, precondition_frequency=2, refresh_schedule="staggered")

    class Graph:
        """Launches what the step did when it was captured, on a stream of its own."""

        def replay(self) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(capture, "underway", lambda: True)
                patch.setattr(stream_order, "current", lambda _: Stream("of the capture", None))
                steps.optimizer.step()

    steps.on("B", steps.optimizer.prepare_capture)
    device.assert_waits_first("B", "A")
    graphed = GraphedStep(steps.optimizer)
    graphed._graphs[False], graphed._results[False] = Graph(), None
    steps.on("C", graphed)
    device.assert_waits_first("C", "B")
    steps.on("A", steps.optimizer.step)
    device.assert_waits_first("A", "C")


def test_off_cuda_there_is_no_order_to_keep():
    order = stream_order.StreamOrder(torch.device("cpu"))
    assert order.follow() is None
    assert order.last is None


def test_a_capture_neither_waits_nor_counts(device, monkeypatch):
    order = stream_order.StreamOrder(torch.device("cpu"))
    first = order.follow()
    device.name = "B"
    monkeypatch.setattr(capture, "underway", lambda: True)
    assert order.follow() is None
    assert order.last is first
    assert device.log == []


def test_gradients_and_rates_that_a_stream_begins_to_read_are_known_there(run, device):
    rate = torch.tensor(2e-3)
    steps = run(lr=rate)
    set_gradients(steps.params, 3)
    for stream in ("B", "C"):
        device.name = stream
        steps.optimizer.step()
        read = {pointer(param.grad) for param in steps.params} | {pointer(rate)}
        assert read <= device.known[stream]
