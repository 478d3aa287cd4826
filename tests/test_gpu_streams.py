"""Steps on several streams have the bits of steps on one, however far behind a stream is.

On the CPU, where nothing is ever behind, the same steps are interpreted.
"""

from __future__ import annotations

import pytest
import torch
from devices import DEVICES, Streams, graphed, synchronize
from streams import assert_same_bits, parameters, set_gradients
from torch.utils.data import DataLoader, Dataset

from soap_fast import SOAP

SHAPES = {"cpu": ((6, 4), (5,)), "cuda": ((32, 16, 3, 3), (5,), (48, 40))}
NEWCOMER = {"cpu": (3, 4), "cuda": (48, 33)}
OPTIONS = [
    pytest.param({"precondition_frequency": 100}, id="plain"),
    pytest.param({"precondition_frequency": 2}, id="periodic"),
    pytest.param({"precondition_frequency": 3, "refresh_schedule": "staggered"}, id="staggered"),
]


def on(device: str, params) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().to(device)) for p in params]


def gradients(device: str, shapes, calls: int) -> list[list[torch.Tensor]]:
    """Of all calls ahead, for a copy from the host would wait for the stream."""
    twins = parameters(shapes)
    found = []
    for call in range(calls):
        set_gradients(twins, call)
        found.append([twin.grad.to(device) for twin in twins])
    return found


class Run:
    """Steps one by one, each on the next of two sleeping streams, or all on the current one."""

    def __init__(self, device: str, *, several: bool, calls: int, **options) -> None:
        self.device = device
        shapes = SHAPES[device]
        self.grads = gradients(device, (*shapes, NEWCOMER[device]), calls)
        self.params = on(device, parameters(shapes))
        self.optimizer = SOAP(self.params, backend="triton", **options)
        self.streams = Streams(device if several else "cpu")
        self.call = 0
        synchronize(device)

    def step(self) -> None:
        """At another rate each, without waiting for anything."""
        with self.streams.turn(self.call):
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-3 * (1 + self.call)
            for param, grad in zip(self.params, self.grads[self.call], strict=False):
                param.grad = grad
            self.optimizer.step()
        self.call += 1

    def end(self):
        synchronize(self.device)
        return [p.detach().cpu() for p in self.params], self.optimizer.state_dict()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_steps_follow_a_stream_that_sleeps(device, options):
    """Uploads of rates and addresses as well, which kernels of the other stream still read."""
    calls, ends = {"cpu": 5, "cuda": 12}[device], []
    for several in (False, True):
        run = Run(device, several=several, calls=calls, **options)
        for _ in range(calls):
            run.step()
        ends.append(run.end())
    assert_same_bits(*ends)


@pytest.mark.parametrize("device", DEVICES)
def test_loading_joining_and_saving_follow_a_stream_that_sleeps(device):
    """A new engine adopts moments that an old one's kernels may still write."""
    ends, saved = [], []
    for several in (False, True):
        run = Run(device, several=several, calls=12, precondition_frequency=3)
        for _ in range(4):
            run.step()
        with run.streams.turn(4):  # the third has put its stream to sleep
            saved.append(run.optimizer.state_dict())
        for _ in range(3):
            run.step()
        with run.streams.turn(7):  # the sixth has
            run.optimizer.load_state_dict(saved[-1])
        run.step()
        run.step()
        (newcomer,) = on(device, parameters((NEWCOMER[device],), seed=1))
        run.optimizer.add_param_group({"params": [newcomer]})
        run.params.append(newcomer)
        for _ in range(3):
            run.step()
        ends.append(run.end())
    assert_same_bits(*saved)
    assert_same_bits(*ends)


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_follows_a_step_on_a_stream_that_sleeps(device):
    ends = []
    for several in (False, True):
        params = on(device, parameters(SHAPES[device]))
        lr = torch.tensor(1e-3, device=device)
        optimizer = SOAP(params, lr=lr, backend="triton", precondition_frequency=100)
        for param, grad in zip(params, gradients(device, SHAPES[device], 1)[0], strict=True):
            param.grad = grad
        synchronize(device)
        step, streams = graphed(optimizer, device), Streams(device if several else "cpu")
        for _ in range(1 + step.WARM_UP + 1):
            step()
        assert set(step._graphs) == {False}
        for turn in range(0, 8, 2):
            with streams.turn(turn):
                optimizer.step()
            with streams.turn(turn + 1):
                step()
        synchronize(device)
        ends.append([p.detach().cpu() for p in params])
    assert_same_bits(*ends)


class Numbered(Dataset):
    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4096,), float(index))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
def test_a_capture_beside_a_loader_that_pins_memory(device):
    """Its thread pins while the graph is captured: more batches are taken there than lie ready.

    All are kept, so that each needs pinned memory of its own.
    """
    params = on(device, parameters(SHAPES[device]))
    lr = torch.tensor(1e-3, device=device)
    optimizer = SOAP(params, lr=lr, backend="triton", precondition_frequency=100)
    grads = gradients(device, SHAPES[device], 1)[0]
    batches = iter(DataLoader(Numbered(), batch_size=None, num_workers=1, pin_memory=True))
    taken: list[torch.Tensor] = []

    def body() -> None:
        taken.extend(next(batches) for _ in range(20))
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad

    step = graphed(optimizer, device, body)
    outside = 1 + step.WARM_UP  # the first one of all tensors, and warm-ups
    calls = outside + {"cpu": 1, "cuda": 3}[device]
    for _ in range(calls):
        step()
    synchronize(device)
    assert set(step._graphs) == {False}
    assert [float(batch[0]) for batch in taken] == list(range(20 * (outside + 1)))
    assert all(batch.is_pinned() for batch in taken) or device == "cpu"

    twins = on(device, parameters(SHAPES[device]))
    alone = SOAP(twins, lr=lr, backend="triton", precondition_frequency=100)
    for param, grad in zip(twins, grads, strict=True):
        param.grad = grad
    for _ in range(calls):
        alone.step()
    assert_same_bits([p.detach() for p in params], [p.detach() for p in twins])
