"""The bits of first bases, refreshes and rotations do not depend on where a factor lies."""

from __future__ import annotations

import pytest
import torch
from streams import assert_same_bits, backends, parameters, set_gradients

from soap_fast import SOAP
from soap_fast.backends import choose
from soap_fast.options import PlanOptions
from soap_fast.step.modes import rotate, rotate_back
from soap_fast.step.plan import plan_tensor

# Of which many matrices in a stack are not aligned, and of small rank, where bits matter most.
SIZES = (2, 3, 5, 7, 8, 9, 11, 12, 13, 16, 17, 21, 25, 31, 32, 33, 48, 49, 63)
COUNT = 3
OPTIONS = PlanOptions(100, False, False, "channels_first")
ALL, ONE = torch.arange(COUNT, dtype=torch.int32), torch.arange(1, dtype=torch.int32)


def factors_of(d: int, dtype: torch.dtype) -> torch.Tensor:  # [3, d, d]
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(COUNT, d, max(1, d // 3), generator=generator, dtype=dtype)
    return x @ x.mT


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", backends())
def test_a_factor_alone_and_one_of_a_stack(backend, dtype):
    ops = choose(backend)
    for d in SIZES:
        k = factors_of(d, dtype)
        bases = ops.eigh([k], [ALL])[1][0]
        alone = [ops.eigh([one[None].clone()], [ONE])[1][0] for one in k]
        assert torch.equal(bases, torch.cat(alone)), f"first bases of size {d}"
        k = 0.9 * k + 0.1 * factors_of(d + 1, dtype)[:, :d, :d]
        new = bases.clone()
        carries = ops.refresh_op([k], [new], [ALL], [ALL >= 0], 0.0).carries[0]
        for place in range(COUNT):
            one = bases[place : place + 1].clone()
            found = ops.refresh_op([k[place][None].clone()], [one], [ONE], [ONE >= 0], 0.0)
            assert torch.equal(new[place], one[0]), f"refresh of size {d}"
            assert torch.equal(carries[place], found.carries[0][0]), f"carry of size {d}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("width", [1, 2, 3, 5, 9, 16, 40, 41, 64])
@pytest.mark.parametrize("turn", [rotate, rotate_back])
def test_a_basis_anywhere(turn, width):
    for d in SIZES:
        generator = torch.Generator().manual_seed(d)
        x, q = torch.randn(d, width, generator=generator), torch.randn(d, d, generator=generator)
        plan = plan_tensor((d, width), OPTIONS)
        expected = turn(x, [q, None], plan)
        for shift in (1, 2, 4, 8):
            moved = torch.empty(d * d + shift)[shift:].view(d, d).copy_(q)
            assert torch.equal(turn(x, [moved, None], plan), expected), f"size {d}"


def stepped(shape, others: int, backend: str) -> tuple[torch.Tensor, dict]:
    """A tensor after steps with gradients near rank one, behind others of its shape."""
    params = parameters((shape,) * (others + 1))
    params[-1].data = parameters((shape,), seed=1)[0].data
    optimizer = SOAP(params, precondition_frequency=2, backend=backend)
    for call in range(6):
        set_gradients(params, call)
        generator = torch.Generator().manual_seed(call)
        left = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        noise = 1e-4 * torch.randn(shape, generator=generator)
        params[-1].grad = left * torch.randn(shape[1:], generator=generator) + noise
        optimizer.step()
    return params[-1].detach(), optimizer.state_dict()["state"][others]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (5, 7), (9, 3, 3, 3), (33, 6)], ids=str)
@pytest.mark.parametrize("backend", backends())
def test_a_tensor_alone_and_one_among_others(backend, shape):
    alone = stepped(shape, 0, backend)
    for others in (1, 2):
        assert_same_bits(stepped(shape, others, backend), alone)
