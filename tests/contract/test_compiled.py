"""A training step under torch.compile: the optimizer is left alone, and nothing else changes."""

from __future__ import annotations

import functools
import os
import warnings

import pytest
import tolerances
import torch
import torch._dynamo
from streams import assert_same_bits
from subject import device_of, on_every_backend
from torch._dynamo.testing import CompileCounter

from soap_fast import SOAP

CALLS = 5


def train(backend, *, compiler=None, whole: bool = True) -> list[torch.Tensor]:
    """Parameters after some steps; compiled whole, or of the step nothing but the optimizer's."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    model.to(device := device_of(backend))
    optimizer = SOAP(model.parameters(), precondition_frequency=2, backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(images: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        optimizer_step()
        return loss

    optimizer_step = optimizer.step
    if compiler is not None and whole:
        step = torch.compile(step, backend=compiler)
    elif compiler is not None:
        optimizer_step = torch.compile(optimizer.step, backend=compiler)
    generator = torch.Generator().manual_seed(1)
    for _ in range(CALLS):
        step(torch.randn(5, 3, generator=generator).to(device))
        scheduler.step()
    assert {optimizer.state[p]["calls"] for p in model.parameters()} == {CALLS}
    return [p.detach().clone() for p in model.parameters()]


@functools.cache
def uncompiled(backend) -> list[torch.Tensor]:
    return train(backend)


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@on_every_backend
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_training_step_gives_the_same_bits(backend, compiler):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        found = train(backend, compiler=compiler)
    assert not [w for w in given if "soap_fast" in f"{w.filename} {w.message}"]  # none about us
    assert_same_bits(found, uncompiled(backend))


@on_every_backend
def test_a_compiled_step_of_the_optimizer_alone_does(backend):
    assert_same_bits(train(backend, compiler="eager", whole=False), uncompiled(backend))


def test_neither_refreshes_nor_a_new_lr_compile_anew():
    counter = CompileCounter()
    train("eager", compiler=counter)
    assert 1 <= counter.frame_count <= 3  # what is before the optimizer's step, and after it


def test_a_closure_may_be_compiled():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    optimizer = SOAP(layer.parameters())
    forward = torch.compile(layer, backend="eager")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward(torch.ones(3, 4)).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.soak
@pytest.mark.skipif(
    "SOAP_FAST_EXAMPLES" not in os.environ, reason="takes 11 s of C++: make soak runs it"
)
def test_the_default_compiler_trains_to_rounding():
    """Inductor's own code computes the gradients, whose last bits may be others."""
    for found, wanted in zip(train("eager", compiler="inductor"), uncompiled("eager"), strict=True):
        torch.testing.assert_close(found, wanted, **tolerances.FEW_CALLS)


def test_with_fullgraph_the_model_compiles_and_a_step_says_why_it_does_not():
    """Nor does a training step with Adam: torch does not trace `backward` and `zero_grad`."""
    layer = torch.nn.Linear(3, 2)

    @torch.compile(fullgraph=True, backend="eager")
    def loss_of(images: torch.Tensor) -> torch.Tensor:
        return layer(images).square().mean()

    def train_step(images: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss_of(images).backward()
        optimizer.step()

    for make in (torch.optim.Adam, SOAP):
        optimizer = make(layer.parameters())
        with pytest.raises(torch._dynamo.exc.Unsupported, match="zero_grad"):
            torch.compile(train_step, fullgraph=True, backend="eager")(torch.ones(4, 3))
        for _ in range(3):
            train_step(torch.ones(4, 3))
    assert {entry["calls"] for entry in optimizer.state.values()} == {3}
    with pytest.raises(torch._dynamo.exc.Unsupported, match="kernels and operators of its own"):
        torch.compile(optimizer.step, fullgraph=True, backend="eager")()
    assert {entry["calls"] for entry in optimizer.state.values()} == {3}
