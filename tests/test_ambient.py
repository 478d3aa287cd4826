"""Nothing set around a step reaches into it, and all of it stays as it was."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch
from streams import SHAPES, backends, parameters, set_gradients, train

from soap_fast import SOAP, ambient

on_backends = pytest.mark.parametrize("backend", backends())


def reference(backend: str | None = None) -> list[torch.Tensor]:
    params = parameters(((96, 96),))
    train(SOAP(params, backend=backend, precondition_frequency=2), params, range(5))
    return params


def under(backend: str | None = None, calls=range(5)) -> list[torch.Tensor]:
    params = parameters(((96, 96),))
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    return params


@on_backends
def test_autocast(backend):
    expected = reference(backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = under(backend)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found[0], expected[0])


@on_backends
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_matmul_precision(precision, backend):
    expected = reference(backend)
    torch.set_float32_matmul_precision(precision)
    try:
        settings = fp32_settings()
        found = under(backend)
        assert torch.get_float32_matmul_precision() == precision
        assert fp32_settings() == settings
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])


@on_backends
def test_float32_precision_per_backend(backend):
    expected = reference(backend)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        settings = fp32_settings()
        found = under(backend)
        assert fp32_settings() == settings
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])


def test_without_the_override_the_products_of_these_tensors_would_be_others(monkeypatch):
    """Else the tests above would find nothing."""
    factor = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    expected, exact = reference("eager"), factor @ factor
    monkeypatch.setattr(ambient, "_precision", nullcontext())
    torch.set_float32_matmul_precision("medium")
    try:
        if torch.equal(factor @ factor, exact):
            pytest.skip("this processor has no products of bfloat16")
        assert not torch.equal(under("eager")[0], expected[0])
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_inherited_precision_goes_on_being_inherited():
    torch.backends.fp32_precision = "tf32"
    try:
        under(calls=range(2))
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


@on_backends
def test_default_dtype(backend):
    expected = reference(backend)
    params = parameters(((96, 96),))
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    torch.set_default_dtype(torch.float64)
    try:
        for call in range(5):
            generator = torch.Generator().manual_seed(1000 + call)
            params[0].grad = torch.randn(96, 96, generator=generator, dtype=torch.float32)
            optimizer.step()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(params[0], expected[0])


def test_default_device():
    params = parameters()
    optimizer = SOAP(params, precondition_frequency=2)
    with torch.device("meta"):
        for call in range(5):
            for param in params:
                generator = torch.Generator(device="cpu").manual_seed(call)
                param.grad = torch.randn(param.shape, generator=generator, device="cpu")
            optimizer.step()
        restored = SOAP(parameters_on_cpu(), precondition_frequency=2)
        restored.load_state_dict(optimizer.state_dict())
    for param in params:
        assert param.isfinite().all()
        assert optimizer.state[param]["step"].device.type == "cpu"


def parameters_on_cpu():
    return [torch.nn.Parameter(torch.zeros(shape, device="cpu")) for shape in SHAPES]


def fp32_settings() -> tuple[str, ...]:
    backends = torch.backends
    return (backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision)
