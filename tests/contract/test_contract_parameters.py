"""Parameters of every kind, with and without gradients, early and late."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from streams import ON_CPU, assert_same_bits, parameters, set_gradients, snapshot, train

from soap_fast import SOAP


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_parameter_without_dimensions(backend):
    param = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = SOAP([param], lr=0.1, backend=backend)
    for _ in range(6):
        optimizer.zero_grad()
        param.square().backward()
        optimizer.step()
    assert 0 < param.item() < 2


@pytest.mark.parametrize("backend", ON_CPU)
def test_no_gradient_for_ever_or_for_a_step(backend):
    params = parameters(((4, 3), (3,), (2, 2)))
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    never, sometimes = params[2], params[1]
    kept = never.detach().clone()
    for call in range(6):
        set_gradients(params, call)
        never.grad = None
        before = sometimes.detach().clone()
        if call in (0, 3):
            sometimes.grad = None
        optimizer.step()
        assert torch.equal(before, sometimes) == (call in (0, 1, 3))  # 1 is its first call
    assert torch.equal(never, kept)
    assert never not in optimizer.state
    assert optimizer.state[sometimes]["calls"] == 4
    for param in params:
        param.grad = None
    optimizer.step()  # nobody has one
    assert optimizer.state[sometimes]["calls"] == 4


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("backend", ON_CPU)
def test_zero_grad_either_way(backend, set_to_none):
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = SOAP([param], lr=0.05, weight_decay=0.0, backend=backend)
    for _ in range(5):
        optimizer.zero_grad(set_to_none=set_to_none)
        param.square().sum().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert (param.grad is None) if set_to_none else not param.grad.any()
    calls, before = optimizer.state[param]["calls"], param.detach().clone()
    optimizer.step()
    assert optimizer.state[param]["calls"] == calls + (not set_to_none)
    assert param.isfinite().all()
    assert torch.equal(param, before) == set_to_none  # by its momentum it moves under zeros
    assert param.abs().max() < 1


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_closure_runs_once_with_gradients(backend):
    param = torch.nn.Parameter(torch.ones(2, 2))
    optimizer, seen = SOAP([param], backend=backend), []

    def closure():
        seen.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]
    assert seen == [True] * 3
    assert losses[2] < losses[0]
    assert optimizer.step() is None


class Broken(RuntimeError):
    """What a closure raises, and nothing else."""


@pytest.mark.parametrize("calls", [0, 1, 2, 3], ids=["first", "second", "steady", "refresh"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_closure_that_raises_leaves_everything_as_it_was(backend, calls):
    """Whatever gradients it has left; the next step is as if there had been none."""
    params = parameters(((3, 2), (3,)))
    optimizer = SOAP(params, backend=backend, precondition_frequency=3)
    train(optimizer, params, range(calls))
    before = snapshot(optimizer, params)

    def closure():
        set_gradients(params, 99)
        raise Broken

    with pytest.raises(Broken):
        optimizer.step(closure)
    assert torch.is_grad_enabled()
    assert_same_bits(snapshot(optimizer, params), before)
    train(optimizer, params, [calls])
    straight = parameters(((3, 2), (3,)))
    train(SOAP(straight, backend=backend, precondition_frequency=3), straight, range(calls + 1))
    assert_same_bits([p.detach() for p in params], [p.detach() for p in straight])


class Masked(torch.nn.Conv2d):
    """A causal convolution as compression models have it: each forward writes the weight anew."""

    def __init__(self, *sizes: int, moves: bool) -> None:
        super().__init__(*sizes)
        self.moves = moves
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:] = mask[:, :, 2:] = 0
        self.register_buffer("mask", mask)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.moves:
            self.weight.data = self.weight.data * self.mask
        else:
            self.weight.data.mul_(self.mask)
        return super().forward(images)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_module_that_replaces_its_weight_at_every_forward_trains(backend):
    """To the bits of one that masks it in place."""
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    ends = []
    for moves in (True, False):
        torch.manual_seed(0)
        layer = Masked(2, 2, 3, moves=moves)
        optimizer = SOAP(layer.parameters(), lr=0.03, backend=backend, precondition_frequency=2)
        losses, addresses = [], set()
        for _ in range(6):
            optimizer.zero_grad()
            loss = (layer(images) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            addresses.add(layer.weight.data_ptr())
        assert losses[-1] < losses[1] <= losses[0]
        assert (len(addresses) > 1) == moves
        assert optimizer.state[layer.weight]["calls"] == 6
        ends.append([p.detach().clone() for p in layer.parameters()])
    assert_same_bits(*ends)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_group_added_after_the_first_step(backend):
    params = parameters(((4, 3), (3,), (4, 3)))
    optimizer = SOAP(params[:2], backend=backend, precondition_frequency=2)
    train(optimizer, params[:2], range(3))
    optimizer.add_param_group({"params": params[2:], "lr": 0.0})
    kept = params[2].detach().clone()
    train(optimizer, params, range(3, 7))
    assert [optimizer.state[p]["calls"] for p in params] == [7, 7, 4]
    assert torch.equal(params[2], kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ON_CPU)
def test_every_dtype_fits_a_line(backend, dtype):
    param = torch.nn.Parameter(torch.ones(4, 3).to(dtype))
    optimizer = SOAP([param], lr=0.1, backend=backend)
    for _ in range(5):
        optimizer.zero_grad()
        param.float().square().sum().backward()
        optimizer.step()
    assert param.dtype == dtype
    assert 0 < param.float().mean() < 0.9


@pytest.mark.parametrize("kind", ["complex", "sparse", "meta", "integer"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_what_cannot_be_stepped_is_refused_by_name(backend, kind):
    tensor = {
        "complex": torch.zeros(2, 2, dtype=torch.complex64),
        "sparse": torch.zeros(2, 2).to_sparse(),
        "meta": torch.zeros(2, 2, device="meta"),
        "integer": torch.zeros(2, 2, dtype=torch.int32),
    }[kind]
    param = torch.nn.Parameter(tensor, requires_grad=kind != "integer")
    with pytest.raises(
        ValueError, match=r"parameter 'odd' (is complex|has layout|is on the meta|has dtype)"
    ):
        SOAP([("odd", param)], backend=backend)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_graph_from_before_the_step_raises_as_with_adam(backend):
    """Its saved weight has changed: a backward pass through it would be silently wrong."""
    for make in (torch.optim.Adam, lambda params: SOAP(params, backend=backend)):
        layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        optimizer = make(layers.parameters())
        for _ in range(3):
            loss = layers(torch.ones(2, 3)).square().sum()
            loss.backward(retain_graph=True)
            optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", ON_CPU)
def test_what_is_set_around_a_step_has_no_influence_and_stays(backend):
    ends = []
    for disturbed in (False, True):
        params = parameters(((6, 5), (4,)))
        optimizer = SOAP(params, backend=backend, precondition_frequency=2)
        for call in range(5):
            set_gradients(params, call)
            if not disturbed:
                optimizer.step()
                continue
            torch.set_float32_matmul_precision("medium")
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            try:
                with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(False):
                    optimizer.step()
                    assert torch.is_autocast_enabled("cpu")
                assert torch.get_float32_matmul_precision() == "medium"
                assert torch.get_default_dtype() == torch.float64
                assert torch.get_default_device().type == "meta"
            finally:
                torch.set_default_device(None)
                torch.set_default_dtype(torch.float32)
                torch.set_float32_matmul_precision("highest")
        ends.append([p.detach().clone() for p in params])
    assert_same_bits(ends[1], ends[0])


@pytest.mark.parametrize("backend", ON_CPU)
def test_an_optimizer_that_is_dropped_keeps_nothing_alive(backend):
    param = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = SOAP([param], backend=backend)
    train(optimizer, [param], range(4))
    kept = weakref.ref(optimizer.state[param]["exp_avg"])
    del optimizer
    gc.collect()
    assert kept() is None
