"""Where soap_fast differs from the reference on purpose: one test per line of the list."""

from __future__ import annotations

import pytest
import tolerances
import torch
from oracle import OracleSOAP
from streams import assert_same_bits, parameters, set_gradients, snapshot, train

from soap_fast import SOAP


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    optimizer = SOAP([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] == losses[1] == 30.0  # the first call moves nothing
    assert losses[2] < losses[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_step_in_float32_and_round_once(dtype):
    low = parameters(dtype=dtype)
    wide = [torch.nn.Parameter(p.detach().float()) for p in low]
    of_low, of_wide = SOAP(low, precondition_frequency=2), SOAP(wide, precondition_frequency=2)
    for call in range(8):
        set_gradients(low, call)
        for p, q in zip(low, wide, strict=True):
            q.grad = p.grad.float()
            q.data.copy_(p.data)  # the same starting point, so that one step's rounding is compared
        of_low.step()
        of_wide.step()
        for p, q in zip(low, wide, strict=True):
            assert p.dtype == dtype
            assert torch.equal(p, q.to(dtype))
            assert_same_bits(dict(of_low.state[p]), dict(of_wide.state[q]))
            assert of_low.state[p]["exp_avg"].dtype == torch.float32


def test_float64_parameters_keep_state_and_arithmetic_in_float64():
    params = parameters(dtype=torch.float64)
    optimizer = SOAP(params, precondition_frequency=2)
    train(optimizer, params, range(4))
    for param in params:
        state = optimizer.state[param]
        for tensor in (state["exp_avg"], state["exp_avg_sq"], *state["GG"], *state["Q"]):
            assert tensor is None or tensor.dtype == torch.float64


@pytest.mark.parametrize(
    ("option", "attribute", "value"),
    [("precondition_frequency", "frequency", 2), ("shampoo_beta", "beta_s", 0.3)],
)
def test_options_changed_in_param_groups_take_effect(option, attribute, value):
    params = parameters(((8, 8), (6, 4, 3, 3)), dtype=torch.float64)
    optimizer = SOAP(params, precondition_frequency=5)
    changed, unchanged = (OracleSOAP(params, precondition_frequency=5) for _ in range(2))
    for call in range(10):
        if call == 3:
            optimizer.param_groups[0][option] = value
            setattr(changed, attribute, value)
        set_gradients(params, call)
        optimizer.step()
        for oracle in (changed, unchanged):
            oracle.step([param.grad for param in params])
    for param, expected, otherwise in zip(params, changed.params, unchanged.params, strict=True):
        torch.testing.assert_close(param.data, expected, **tolerances.TEN_CALLS_64)
        assert (param - otherwise).abs().max() > 1e-3, "the change did nothing"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_gradient_that_is_not_finite_leaves_its_tensor_out(bad, call):
    """1e30 is finite, its square in float32 is not: it would poison exp_avg_sq and GG for good."""
    params = parameters()
    optimizer = SOAP(params, precondition_frequency=2)
    train(optimizer, params, range(call))
    values, state = snapshot(optimizer, params)

    set_gradients(params, call)
    params[1].grad[0, 0, 0, 0] = bad
    optimizer.step()

    new_values, new_state = snapshot(optimizer, params)
    assert torch.equal(values[1], new_values[1])
    left_out, new_left_out = state["state"][1], new_state["state"][1]
    assert new_left_out.pop("skipped") == left_out.pop("skipped") + 1
    assert new_left_out.pop("calls") == left_out.pop("calls") + 1
    assert_same_bits(left_out, new_left_out)
    assert list(optimizer.stats()["skipped"].values()) == [0, 1, 0, 0, 0]
    for i in (0, 2, 3, 4):
        assert not torch.equal(values[i], new_values[i]), f"parameter {i} did not step"


def test_a_first_gradient_that_is_not_finite_makes_the_next_call_the_first():
    params, clean = parameters(), parameters()
    optimizer, undisturbed = SOAP(params), SOAP(clean)
    set_gradients(params, 0)
    params[0].grad.fill_(float("nan"))
    optimizer.step()
    assert set(optimizer.state[params[0]]) == {"calls", "skipped"}
    assert optimizer.state[params[0]]["calls"] == 0
    assert list(optimizer.stats()["skipped"].values()) == [1, 0, 0, 0, 0]

    train(optimizer, params, range(1, 5))
    train(undisturbed, clean, range(1, 5))
    assert torch.equal(params[0], clean[0])
    assert optimizer.state[params[0]]["skipped"] == 1
    assert list(optimizer.stats()["skipped"].values()) == [1, 0, 0, 0, 0]


def test_skips_are_told_apart_by_group_and_name():
    params = parameters(((4, 4), (4, 4)))
    optimizer = SOAP([{"params": [param]} for param in params])
    set_gradients(params, 0)
    params[0].grad.fill_(float("nan"))
    optimizer.step()
    expected = {"parameter 0 of group 0": 1, "parameter 0 of group 1": 0}
    assert optimizer.stats()["skipped"] == expected
    layer = torch.nn.Linear(2, 2)
    names = SOAP(layer.named_parameters()).stats()["skipped"]
    assert names == {"parameter 'weight'": 0, "parameter 'bias'": 0}


def test_two_clocks():
    """A call left out moves `calls`, which drives refreshes, and not `step`, for the bias."""
    params = parameters(((4, 4),))
    optimizer = SOAP(params, precondition_frequency=3)
    bases, refreshed_at = None, []
    for call in range(1, 12):
        set_gradients(params, call)
        if call == 5:
            params[0].grad.fill_(float("nan"))
        optimizer.step()
        basis = optimizer.state[params[0]]["Q"][0].clone()
        if bases is not None and not torch.equal(bases, basis):
            refreshed_at.append(call)
        bases = basis
    assert refreshed_at == [4, 7, 10]  # (calls - 1) % 3 == 0, whatever was left out
    assert optimizer.state[params[0]]["calls"] == 11
    assert optimizer.state[params[0]]["step"] == 9


def test_a_parameter_clocks_itself_from_its_own_first_gradient():
    params, alone = parameters(((4, 4), (5, 5))), parameters(((4, 4), (5, 5)))
    optimizer = SOAP(params, precondition_frequency=2)
    late = SOAP(alone[1:], precondition_frequency=2)
    for call in range(9):
        set_gradients(params, call)
        if call < 3:
            params[1].grad = None
        else:
            alone[1].grad = params[1].grad.clone()
            late.step()
        optimizer.step()
    assert torch.equal(params[1], alone[1])
    assert optimizer.state[params[0]]["calls"] == 9
    assert optimizer.state[params[1]]["calls"] == 6


def test_lr_zero_moves_state_and_not_parameters():
    params = parameters()
    optimizer = SOAP(params, lr=0.0)
    values, _ = snapshot(optimizer, params)
    train(optimizer, params, range(3))
    for before, after in zip(values, params, strict=True):
        assert torch.equal(before, after)
    assert optimizer.state[params[0]]["exp_avg"].abs().max() > 0


def test_lr_may_be_a_tensor_of_any_shape_with_one_element():
    reference = parameters()
    train(SOAP(reference, lr=0.02), reference, range(4))
    for lr in (torch.tensor(0.02), torch.tensor([0.02], dtype=torch.float64)):
        params = parameters()
        train(SOAP(params, lr=lr), params, range(4))
        for p, q in zip(params, reference, strict=True):
            torch.testing.assert_close(p, q, **tolerances.LR_IN_FLOAT32)
            assert p.dtype == torch.float32


def test_zero_gradients_keep_the_basis_and_later_ones_train():
    params = parameters(((4, 6),))
    optimizer = SOAP(params, precondition_frequency=2, weight_decay=0.0)
    start = params[0].detach().clone()
    for _ in range(5):
        params[0].grad = torch.zeros(4, 6)
        optimizer.step()
    state = optimizer.state[params[0]]
    assert torch.equal(state["Q"][0], torch.eye(4))
    assert torch.equal(state["Q"][1], torch.eye(6))
    assert torch.equal(params[0], start)
    train(optimizer, params, range(6))
    assert params[0].isfinite().all()
    assert not torch.equal(params[0], start)
    assert not torch.equal(state["Q"][0], torch.eye(4))


@pytest.mark.parametrize("eps", [0.0, 1e-50])
def test_no_eps_and_a_dead_row_do_not_divide_zero_by_zero(eps):
    """1e-50 is zero in float32."""
    params = parameters(((4, 4), (7,)))
    optimizer = SOAP(params, eps=eps, precondition_frequency=2)
    for call in range(5):
        set_gradients(params, call)
        params[0].grad[2] = 0
        params[1].grad[3] = 0
        optimizer.step()
    assert all(param.isfinite().all() for param in params)


def test_modes_of_size_one_have_no_factor_and_change_nothing():
    with_unit = parameters(((4, 1, 4),))
    without = [torch.nn.Parameter(with_unit[0].detach().reshape(4, 4).clone())]
    optimizer, plain = SOAP(with_unit), SOAP(without)
    for call in range(4):
        set_gradients(with_unit, call)
        without[0].grad = with_unit[0].grad.reshape(4, 4).clone()
        optimizer.step()
        plain.step()
    assert optimizer.state[with_unit[0]]["GG"][1] is None
    assert torch.equal(with_unit[0].reshape(4, 4), without[0])


@pytest.mark.parametrize("merge_dims", [False, True])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2), (20000, 0, 5)])
def test_empty_parameters_are_harmless(shape, merge_dims):
    param = torch.nn.Parameter(torch.zeros(shape))
    optimizer = SOAP([param], normalize_grads=True, merge_dims=merge_dims)
    for _ in range(3):
        param.grad = torch.zeros(shape)
        optimizer.step()


def test_strides_do_not_matter():
    """Permuted parameters, as window attention has them, take the same steps as contiguous ones."""
    start = torch.randn(5, 5, 4, generator=torch.Generator().manual_seed(0))
    permuted = torch.nn.Parameter(start.clone().permute(2, 0, 1))
    contiguous = torch.nn.Parameter(start.permute(2, 0, 1).contiguous())
    assert not permuted.is_contiguous()
    strides = permuted.stride()
    of_permuted, of_contiguous = SOAP([permuted]), SOAP([contiguous])
    for call in range(4):
        set_gradients([contiguous], call)
        permuted.grad = contiguous.grad.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        of_permuted.step()
        of_contiguous.step()
    assert permuted.stride() == strides
    assert torch.equal(permuted, contiguous)


def test_backward_through_a_graph_from_before_the_step_raises():
    weight = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = SOAP([weight])
    set_gradients([weight], 0)
    optimizer.step()
    loss = (weight @ weight).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
