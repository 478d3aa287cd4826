"""What faults are injected into: a few small tensors on every backend, and their states compared.

Kernels are interpreted where there is no GPU and take a tenth of a second a step: the tensors are
as small as they can be and still have a fold, products, a vector and joined modes among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from streams import ON_CPU, parameters

from soap_fast import SOAP
from soap_fast.checkpoint.by_mode import from_saved

BACKENDS = ON_CPU  # it is there that faults are injected and seen
EVERY_THIRD = 3  # precondition_frequency: call 0 begins, 1 is plain, 2 is steady, 3 refreshes
SHAPES = {"eager": ((4, 3), (3,), (2, 3, 2)), "triton": ((4, 3), (3,))}
SHAPES["native"] = SHAPES["eager"]


class Broken(RuntimeError):
    """What an injected fault raises, and nothing else."""


def for_each(cases: Sequence[tuple], interpreted: Sequence[tuple]) -> list:
    """(backend, *case) for every backend; of the cases only some where kernels are interpreted."""
    return [
        pytest.param(*backend.values, *case, marks=backend.marks)
        for backend in BACKENDS
        for case in (interpreted if "triton" in backend.values else cases)
    ]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums that are split over threads move the last bits with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(
    backend: str, shapes: Sequence[tuple[int, ...]] | None = None, **options
) -> tuple[list[torch.nn.Parameter], SOAP]:
    params = parameters(shapes or SHAPES[backend])
    options = {"precondition_frequency": EVERY_THIRD, **options}
    return params, SOAP(params, backend=backend, **options)


def gradients(params: Sequence[torch.Tensor], call: int) -> list[torch.Tensor]:
    """Of call `call`: each depends on its place and its shape, not on who else has one."""
    found = []
    for place, param in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * (place + 1) + call)
        found.append(torch.randn(param.shape, generator=generator).to(param.dtype))
    return found


def give(params: Sequence[torch.Tensor], found: Sequence[torch.Tensor | None]) -> None:
    for param, grad in zip(params, found, strict=True):
        param.grad = None if grad is None else grad.clone()


def take(optimizer: SOAP, params: Sequence[torch.Tensor], calls: Sequence[int]) -> None:
    for call in calls:
        give(params, gradients(params, call))
        optimizer.step()


def tensor_by_tensor(optimizer: SOAP, params: Sequence[torch.Tensor]) -> list[dict]:
    """Value and state of each parameter, copied."""
    saved = optimizer.state_dict()["state"]
    modes = [len(optimizer.state.get(param, {}).get("Q", ())) for param in params]
    return [
        {"value": param.detach().clone(), **from_saved(saved.get(place, {}), modes[place])}
        for place, param in enumerate(params)
    ]


def without(entry: dict, *names: str) -> dict:
    return {key: value for key, value in entry.items() if key not in names}


def go_on(optimizer: SOAP, params: Sequence[torch.Tensor], calls: Sequence[int]) -> list[dict]:
    take(optimizer, params, calls)
    return tensor_by_tensor(optimizer, params)


def assert_orthogonal(optimizer: SOAP) -> None:
    """Diagonal and the rest of QᵀQ each on its own, so that no large one hides a small error."""
    for entry in optimizer.state.values():
        for q in entry.get("Q", ()):
            if q is not None:
                product = q.double().T @ q.double()
                unit = torch.finfo(q.dtype).eps * q.shape[0]
                off = product - torch.diag(product.diagonal())
                assert (product.diagonal() - 1).abs().max() <= 8 * unit
                assert off.abs().max() <= 8 * unit
