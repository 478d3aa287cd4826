"""Ctrl-C at any line of a step: every tensor has stepped or has not, and training goes on."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from functools import partial

import pytest
import torch
from injected import CtrlC
from signals import NUMBERS
from soaking import SOAKING, some_of
from straight import CASES, MOMENTS, Straight
from subjects import one_thread  # noqa: F401

from soap_fast import ambient
from soap_fast.interrupts import held

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def less_precise_products():
    """What a step overrides, and must restore after an interrupt too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)
    # torch's own no_grad around every optimizer's step may be interrupted as it is left.
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("backend", "moment"), CASES)
def test_at_any_line(backend, moment):
    straight = Straight(backend, MOMENTS[moment])
    params, optimizer = straight.ready()
    with CtrlC() as lines:
        optimizer.step()
    assert straight.found(optimizer, params) == ["after"] * len(params)
    places: set[str] = set()
    for at in moments_of(lines, backend):
        params, optimizer = straight.ready()
        with CtrlC(at) as pressed:
            try:
                optimizer.step()
            except KeyboardInterrupt:
                raised = True
            else:
                raised = False  # Python did not look for signals any more before the step returned
        where = f"line {at} of {lines.count}, Ctrl-C in {pressed.raised_in}"
        left = straight.check(optimizer, params, where)
        assert raised or left == ["after"] * len(params), where
        assert torch.get_float32_matmul_precision() == "high", where
        assert ambient._precision._inside == 0, where
        if pressed.raised_in not in places and (backend != "triton" or not places):
            straight.check_what_follows(optimizer, params, left, where)
        places.add(pressed.raised_in)
    assert len(places) > (1 if backend == "triton" else 30)


def moments_of(lines: CtrlC, backend: str) -> list[int]:
    """The first and last line of every function; all by `make soak`, a few of interpreted ones."""
    if SOAKING or backend == "triton":
        return some_of(lines.count, 3, soaking=10_000 if backend != "triton" else 100)
    return sorted({*lines.first.values(), *lines.last.values()})


def test_held_raises_as_its_block_ends_and_only_there():
    done = []

    def press_within(keyboard):
        with held:
            keyboard.press(None, None, None)
            done.append("inside")
            with held:
                keyboard.press(None, None, None)
            done.append("still inside")
        done.append("behind")

    with CtrlC() as keyboard, pytest.raises(KeyboardInterrupt):
        press_within(keyboard)
    assert done == ["inside", "still inside"]
    with held:  # and nothing is left over for the next one
        pass


def test_held_raises_all_signals_that_came_though_the_handler_of_one_raises():
    told = []

    def note(number, frame):
        told.append(number)
        raise InterruptedError

    kept = {one: signal.signal(one, note) for one in NUMBERS}
    try:
        with pytest.raises(InterruptedError):
            hold(*(partial(signal.raise_signal, one) for one in NUMBERS), partial(told.append, 0))
        assert told.pop(0) == 0  # and none before the end of the block
        assert sorted(told) == sorted(NUMBERS)
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


def hold(*acts) -> None:
    with held:
        for act in acts:
            act()


@pytest.mark.parametrize("number", NUMBERS)
def test_an_exception_as_held_is_entered_or_left_leaves_handlers_as_they_were(number):
    kept = {one: signal.signal(one, signal.default_int_handler) for one in NUMBERS}
    try:
        with CtrlC(None, number) as lines:
            hold()
        for at in range(lines.count):
            with CtrlC(at, number) as pressed, suppress(KeyboardInterrupt):
                hold()
            where = f"line {at} of {lines.count}, {pressed.raised_in}"
            found = {signal.getsignal(one) for one in NUMBERS}
            assert found == {signal.default_int_handler}, where
            for one in NUMBERS:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(one)
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


def test_an_exception_of_no_handler_leaves_ctrl_c_alive():
    """As a trace function or another thread may raise it, at any line: handlers are put back
    by the next block at the latest, and hand on what they are told until then."""

    def raising(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != sys.modules[type(held).__module__].__file__:
            return None
        left -= 1
        if left < 0:
            sys.settrace(None)
            raise InterruptedError
        return raising

    tracing, handler = sys.gettrace(), signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)  # which a shell's background ignores
    try:
        for at in range(200):
            left = at
            try:
                sys.settrace(raising)
                hold()
            except InterruptedError:
                done = False
            else:
                done = True
            finally:
                sys.settrace(tracing)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            hold()
            assert signal.getsignal(signal.SIGINT) == handler, at
            if done:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    assert 20 < at < 199


def test_held_does_nothing_in_another_thread():
    errors = []

    def run():
        try:
            with held, held:
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not errors
    assert not held._depth
