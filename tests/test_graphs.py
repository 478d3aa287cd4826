"""Capture of a step in a CUDA graph, as far as it shows without one; test_gpu_graphs.py has one."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from streams import parameters, set_gradients, train

from bench import shapes
from bench.recorded import record
from soap_fast import SOAP, GraphedStep
from soap_fast.backends.triton.backend import TritonBackend, interpreted
from soap_fast.backends.triton.launch.launcher import RecordingLauncher
from soap_fast.step import capture

SHAPES = ((6, 4, 3, 3), (5,), (8, 8))


@pytest.fixture
def capturing(monkeypatch):
    """A switch: whether a stream would be under capture."""
    state = {"on": False}
    monkeypatch.setattr(capture, "underway", lambda: state["on"])

    def switch(on: bool) -> None:
        state["on"] = on

    return switch


def recorded_optimizer(calls=3, more=(), **options):
    """Under the recording launcher: everything of the Triton step but the kernels."""
    options = {"backend": "eager", "lr": torch.tensor(1e-3), **options}
    params = [*parameters(SHAPES), *more]
    optimizer = SOAP(params, **options)
    train(optimizer, params, [0])
    optimizer._backend = TritonBackend(launcher=RecordingLauncher())
    train(optimizer, params, range(1, calls))
    return optimizer, params


def test_a_captured_step_moves_no_clock_and_a_replay_moves_all(capturing):
    optimizer, params = recorded_optimizer()
    set_gradients(params, 3)
    capturing(True)
    optimizer.step()
    assert [optimizer.state[p]["calls"] for p in params] == [3, 3, 3]
    capturing(False)
    optimizer.replayed()
    assert [optimizer.state[p]["calls"] for p in params] == [4, 4, 4]


def test_the_graph_holds_every_upload_and_so_does_the_next_step(capturing, monkeypatch):
    from soap_fast.backends.triton.launch import mirror

    optimizer, _ = recorded_optimizer()
    optimizer.step()  # steady: nothing is uploaded
    uploads = []
    real = mirror.upload_into
    monkeypatch.setattr(mirror, "upload_into", lambda *a: (uploads.append(a), real(*a)))
    optimizer.step()
    assert uploads == []
    for on in (True, False):
        uploads.clear()
        capturing(on)
        optimizer.step()
        # Rows and values of options, addresses of gradients and of parameters.
        assert len(uploads) == 4


def test_a_refresh_is_captured_by_the_clock(capturing):
    optimizer, params = recorded_optimizer(calls=6, precondition_frequency=2)
    launcher = optimizer._backend.launcher
    for calls, refreshes in ((6, True), (7, False)):
        for param in params:
            optimizer.state[param]["calls"] = calls
        launcher.launched.clear()
        capturing(True)
        optimizer.step()
        capturing(False)
        assert ("count" in [launch.op for launch in launcher.launched]) == refreshes


def test_what_cannot_be_captured_says_why(capturing):
    capturing(True)
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend="eager", lr=torch.tensor(1e-3))
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 has not been stepped yet"):
        optimizer.step()

    capturing(False)
    optimizer, params = recorded_optimizer(lr=1e-3)
    capturing(True)
    with pytest.raises(RuntimeError, match=r"has lr=0.001, which the graph would repeat"):
        optimizer.step()

    capturing(False)
    optimizer, params = recorded_optimizer()
    params[1].grad = None
    optimizer.step()
    set_gradients(params, 4)
    capturing(True)
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 has had 3 calls .* another"):
        optimizer.step()
    assert [optimizer.state[p]["calls"] for p in params] == [4, 3, 4]

    for param in params:
        param.grad = None
    with pytest.raises(RuntimeError, match="nothing to capture"):
        optimizer.step()


def test_memory_and_kernels_must_be_ready(capturing):
    optimizer, params = recorded_optimizer(calls=1)
    set_gradients(params, 1)
    capturing(True)
    with pytest.raises(RuntimeError, match="take a step outside of the capture first"):
        optimizer.step()
    capturing(False)
    optimizer, params = recorded_optimizer(calls=2, precondition_frequency=2)
    set_gradients(params, 2)
    capturing(True)
    with pytest.raises(RuntimeError, match="the first refresh loads kernels"):
        optimizer.step()


def test_a_replay_of_nothing_is_an_error():
    with pytest.raises(RuntimeError, match="no step of this optimizer has been captured"):
        SOAP(parameters(SHAPES)).replayed()


def test_which_graph_a_call_takes_is_what_the_call_would_do():
    params = parameters(SHAPES)
    optimizer = SOAP(params, precondition_frequency=3)
    step = GraphedStep(optimizer)
    for call in range(8):
        expected = step.refreshes_next()
        before = [int(optimizer.state[p]["refreshes"].sum()) for p in params if call]
        train(optimizer, params, [call])
        after = [int(optimizer.state[p]["refreshes"].sum()) for p in params if call]
        assert (before != after) == expected


def test_capture_on_a_model_repeats_the_launches(capturing):
    recorded = record(shapes.load("hyperprior"))
    recorded.optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    plain = recorded.step()
    capturing(True)
    assert recorded.step() == plain


@pytest.mark.skipif(not interpreted(), reason="interprets kernels: TRITON_INTERPRET is not set")
@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_one_staggered_graph_refreshes_what_is_due_by_the_clock_on_the_device(capturing, tolerance):
    """What a graph would hold is run at once here: each captured step is followed by its replay."""
    options = {
        "lr": torch.tensor(1e-3),
        "backend": "triton",
        "precondition_frequency": 3,
        "refresh_schedule": "staggered",
        "refresh_tolerance": tolerance,
    }
    shapes = ((6, 4, 3, 3), (5,), (8, 8), (6, 8), (4, 1))
    ends = []
    for graphed in (False, True):
        params = parameters(shapes)
        optimizer = SOAP(params, **options)
        train(optimizer, params, range(5))
        if graphed:
            set_gradients(params, 0)
            optimizer.prepare_capture()
        for call in range(5, 12):
            capturing(graphed)
            train(optimizer, params, [call])
            capturing(False)
            if graphed:
                optimizer.replayed()
        ends.append((params, optimizer.state_dict()["state"]))
    (ours, state), (theirs, expected) = ends[1], ends[0]
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), index
        assert torch.equal(state[index]["refreshes"], expected[index]["refreshes"])
        assert state[index]["calls"] == 12
    assert sum(int(entry["refreshes"][0]) for entry in state.values()) > 0


def test_staggered_without_preparation_or_kernels_of_ours_says_what_to_do(capturing):
    optimizer, params = recorded_optimizer(
        calls=5, refresh_schedule="staggered", precondition_frequency=2
    )
    capturing(True)
    with pytest.raises(RuntimeError, match=r"call optimizer\.prepare_capture\(\) before"):
        optimizer.step()
    capturing(False)
    optimizer.prepare_capture()
    capturing(True)
    optimizer.step()
    capturing(False)
    optimizer.replayed()

    params = parameters(SHAPES)
    eager = SOAP(params, backend="eager", lr=torch.tensor(1e-3), refresh_schedule="staggered")
    train(eager, params, range(3))
    capturing(True)
    with pytest.raises(RuntimeError, match="only backend='triton' can choose them"):
        eager.step()


def test_a_staggered_graph_may_have_empty_tensors_and_none_that_kernels_do_not_step(capturing):
    options = {"calls": 5, "refresh_schedule": "staggered", "precondition_frequency": 2}
    empty = torch.nn.Parameter(torch.empty(0, 3))
    optimizer, _ = recorded_optimizer(more=[empty], **options)
    optimizer.prepare_capture()
    capturing(True)
    optimizer.step()
    capturing(False)

    other = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    optimizer, _ = recorded_optimizer(more=[other], backend=None, **options)
    optimizer.prepare_capture()
    capturing(True)
    with pytest.raises(RuntimeError, match="needs Triton kernels to step every tensor"):
        optimizer.step()


def test_a_step_after_a_replay_uploads_what_the_replay_has_overwritten(capturing, monkeypatch):
    from soap_fast.backends.triton.launch import mirror

    optimizer, _ = recorded_optimizer()
    capturing(True)
    optimizer.step()
    capturing(False)
    optimizer.step()
    optimizer.step()  # steady
    optimizer.replayed()
    uploads = []
    real = mirror.upload_into
    monkeypatch.setattr(mirror, "upload_into", lambda *a: (uploads.append(a), real(*a)))
    optimizer.step()
    assert len(uploads) == 4


def test_a_capture_leaves_other_threads_alone(monkeypatch):
    """In CUDA's default mode, global, a thread that pins memory meanwhile would spoil it."""
    asked = []

    class Graph:
        def pool(self):
            return "pool"

        def replay(self):
            pass

    @contextmanager
    def graph(captured, **options):
        asked.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    params = parameters(SHAPES)
    step = GraphedStep(SOAP(params, backend="eager"))
    for refreshes in (False, True):
        step._capture(refreshes)
    assert [options["capture_error_mode"] for options in asked] == ["thread_local"] * 2
    assert [options["pool"] for options in asked] == [None, "pool"]
