"""Where parameters may lie, when they may join, and what a step says about them."""

from __future__ import annotations

import warnings

import pytest
import torch
from streams import BACKENDS, parameters
from subject import assert_equal, copies, device_of, follow, on_every_backend, started

from soap_fast import SOAP


@on_every_backend
def test_a_sparse_gradient_is_refused_and_nothing_has_moved(backend):
    device = device_of(backend)
    table = torch.nn.Embedding(4, 3, sparse=True, device=device)
    other = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = SOAP([other, *table.parameters()], backend=backend)
    (table(torch.tensor([1, 2], device=device)) * other).sum().backward()
    with pytest.raises(ValueError, match="parameter 1 of group 0 has a gradient of layout"):
        optimizer.step()
    assert not optimizer.state


@on_every_backend
def test_a_group_that_joins_after_the_first_step_begins_by_itself(backend):
    params, optimizer = started(backend, ((3, 2), (3,)), calls=3)
    late = [torch.nn.Parameter(p.data.to(device_of(backend))) for p in parameters(((3, 2),))]
    alone = copies(late)
    optimizer.add_param_group({"params": late, "lr": 0.1})
    for call in range(3, 6):
        follow(optimizer, [*params, *late], [call])
    assert [optimizer.state[p]["calls"] for p in (*params, *late)] == [6, 6, 3]

    other = SOAP(alone, lr=0.1, backend=backend, precondition_frequency=2)
    for call in range(3, 6):
        generator = torch.Generator().manual_seed(1000 + call)
        grads = [torch.randn(p.shape, generator=generator) for p in (*params, *late)]
        alone[0].grad = grads[-1].to(alone[0].device)
        other.step()
    assert_equal(late, alone)
    undisturbed, _ = started(backend, ((3, 2), (3,)), calls=6)
    assert_equal(params, undisturbed)


def far_apart(tmp_path, name: str) -> torch.Tensor:  # [2, 2]
    """Two rows 2^31 elements apart, in a file of which no more than two pages are written."""
    numel = 2**31 + 2
    base = torch.from_file(str(tmp_path / name), shared=True, size=numel, dtype=torch.float32)
    return base.as_strided((2, 2), (2**31, 1))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values != ("triton",)])
def test_elements_more_than_two_to_the_31_apart(backend, tmp_path):
    value, grad = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))
    param = torch.nn.Parameter(far_apart(tmp_path, "param").copy_(value))
    near = torch.nn.Parameter(value.clone())
    param.grad, near.grad = far_apart(tmp_path, "grad").copy_(grad), grad.clone()
    assert param.stride() == param.grad.stride() == (2**31, 1)
    far, other = (SOAP([p], backend=backend, precondition_frequency=2) for p in (param, near))
    for _ in range(4):
        far.step()
        other.step()
    assert param.stride() == (2**31, 1)
    assert not torch.equal(near, value)
    assert_equal([param], [near])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values == ("triton",)])
def test_elements_that_far_apart_are_left_to_others_by_triton(backend, tmp_path):
    """Its offsets within a tensor are of 32 bits; it says so and does not wrap around."""
    if device_of(backend) != "cpu":
        pytest.skip("a tensor on the GPU has no memory that is never written")
    param = torch.nn.Parameter(far_apart(tmp_path, "param"))
    optimizer = SOAP([param], backend=backend)
    param.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"2\^30 elements or more, or as many between"):
        optimizer.step()


@on_every_backend
def test_it_prints_its_options(backend):
    params = parameters(((2, 2), (3,)))
    optimizer = SOAP([{"params": params[:1]}, {"params": params[1:], "lr": 0.25}], backend=backend)
    text = repr(optimizer)
    assert text.startswith("SOAP (\nParameter Group 0")
    for name in (*optimizer.defaults, "lr: 0.25", "lr: 0.003"):
        assert name in text


@on_every_backend
def test_a_step_warns_of_nothing(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="triton", category=DeprecationWarning)
        started(backend, ((3, 2), (3,)), calls=4)
