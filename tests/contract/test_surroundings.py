"""Nothing set around a step reaches into its results, and all of it stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from streams import assert_same_bits, parameters
from subject import assert_equal, device_of, on_every_backend

from soap_fast import SOAP

CALLS = 3  # the first, a plain one, and one that refreshes


def shape_of(backend: str) -> tuple[int, int]:
    """Large enough for products in bfloat16 to be made where they are allowed."""
    return (6, 4) if backend == "triton" else (96, 96)


def settings() -> tuple:
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().sum().item(),
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    **({"autocast on CUDA": lambda: torch.autocast("cuda")} if torch.cuda.is_available() else {}),
    "matmul precision high": lambda: matmul_precision("high"),
    "matmul precision medium": lambda: matmul_precision("medium"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "gradients on": torch.enable_grad,
    "deterministic": deterministic,
}


def begun(backend: str) -> tuple[list[torch.nn.Parameter], SOAP, list[list[torch.Tensor]]]:
    shape = shape_of(backend)
    params = [torch.nn.Parameter(p.data.to(device_of(backend))) for p in parameters((shape, (3,)))]
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    generator = torch.Generator().manual_seed(1)
    grads = [
        [torch.randn(p.shape, generator=generator).to(p.device) for p in params]
        for _ in range(CALLS)
    ]
    return params, optimizer, grads


def step(params, optimizer, grads) -> None:
    for call in grads:
        for param, grad in zip(params, call, strict=True):
            param.grad = grad
        optimizer.step()


@on_every_backend
def test_what_is_set_around_a_step_does_not_reach_into_it(backend):
    expected, plain, grads = begun(backend)
    step(expected, plain, grads)
    for name, around in AROUND.items():
        params, optimizer, grads = begun(backend)
        with torch.random.fork_rng(), around():
            before = settings()
            step(params, optimizer, grads)
            saved = optimizer.state_dict()
            optimizer.load_state_dict(saved)
            assert settings() == before, name
        assert_equal(params, expected)
        assert_same_bits(saved, plain.state_dict(), name)
        assert_same_bits(optimizer.state_dict(), saved, name)
