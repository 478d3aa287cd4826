"""Nothing set around a step reaches into it, and all of it stays as it was."""

from __future__ import annotations

import threading

import torch
from streams import parameters, set_gradients, train

from soap_fast import SOAP, ambient


def reference() -> list[torch.Tensor]:
    params = parameters(((96, 96),))
    train(SOAP(params, precondition_frequency=2), params, range(5))
    return params


def under(calls=range(5)) -> list[torch.Tensor]:
    params = parameters(((96, 96),))
    optimizer = SOAP(params, precondition_frequency=2)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    return params


def test_float32_precision_per_backend():
    expected = reference()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        settings = fp32_settings()
        found = under()
        assert fp32_settings() == settings
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])


def test_an_inherited_precision_goes_on_being_inherited():
    torch.backends.fp32_precision = "tf32"
    try:
        under(range(2))
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def test_two_threads_do_not_restore_each_others_override():
    """One enters before the other and leaves before it."""
    torch.set_float32_matmul_precision("medium")
    try:
        settings = fp32_settings()
        inside, first_left = threading.Barrier(2), threading.Event()

        def step(leaves_first):
            with ambient.neutral(["cpu"]):
                inside.wait()
                if not leaves_first:
                    first_left.wait()
                    seen.append(fp32_settings())
            first_left.set()

        seen = []
        threads = [threading.Thread(target=step, args=(first,)) for first in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert seen == [("ieee", "ieee")]
        assert fp32_settings() == settings
    finally:
        torch.set_float32_matmul_precision("highest")


def fp32_settings() -> tuple[str, ...]:
    backends = torch.backends
    return (backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision)
