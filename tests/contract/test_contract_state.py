"""States are saved, loaded, copied and carried to other backends as torch's optimizers' are."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import tolerances
import torch
from streams import ON_CPU, assert_same_bits, parameters, set_gradients, through_a_file, train
from torch.optim import optimizer as torch_optimizer
from torch_info import INFO

from soap_fast import SOAP

SHAPES = ((4, 3), (3, 2, 2), (3,), ())
ACROSS = ((4, 3), (6, 4, 3, 3), (3,))  # moments of a kernel lie in another order under Triton
CONFIGURATIONS = {each.desc: each for each in INFO.optim_inputs_func("cpu")}


def stepped(backend, calls=4, **options):
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend=backend, **{"precondition_frequency": 3, **options})
    train(optimizer, params, range(calls))
    return params, optimizer


def copies(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


@pytest.mark.parametrize("desc", CONFIGURATIONS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_fresh_optimizer_goes_on_bit_for_bit(backend, desc):
    params, optimizer = stepped(backend, 3, **CONFIGURATIONS[desc].kwargs)
    saved = optimizer.state_dict()
    assert_same_bits(optimizer.state_dict(), saved)  # deterministic
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(saved))
    assert_same_bits(other.state_dict(), saved)
    train(optimizer, params, range(3, 5))
    train(other, resumed, range(3, 5))
    assert_same_bits(copies(resumed), copies(params))


@functools.cache
def saved_and_gone_on(backend: str) -> tuple[dict, list, list]:
    """A state after four calls, the values then, and those after three calls more."""
    params = parameters(ACROSS)
    optimizer = SOAP(params, backend=backend, precondition_frequency=3)
    train(optimizer, params, range(4))
    saved, start = optimizer.state_dict(), copies(params)
    train(optimizer, params, range(4, 7))
    return saved, start, copies(params)


@pytest.mark.parametrize("to", ON_CPU)
@pytest.mark.parametrize("of", ON_CPU)
def test_training_goes_on_on_another_backend(of, to):
    """One more refresh and two more steps, close to what the first backend makes of them."""
    saved, start, expected = saved_and_gone_on(of)
    resumed = copies(start)
    other = SOAP(resumed, backend=to)
    other.load_state_dict(through_a_file(saved))
    train(other, resumed, range(4, 7))
    for ours, theirs, old in zip(expected, resumed, start, strict=True):
        moved = (ours - old).abs().max()
        assert (ours - theirs).abs().max() <= tolerances.TRACE * moved


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("backend", ON_CPU)
def test_copies_go_on_by_themselves(backend, copier):
    params, optimizer = stepped(backend)
    copied = copier(optimizer)
    assert copied.backend == optimizer.backend
    own = copied.param_groups[0]["params"]
    before = copies(params)
    train(copied, own, range(4, 7))
    assert_same_bits(copies(params), before)
    train(optimizer, params, range(4, 7))
    assert_same_bits(copies(own), copies(params))


@pytest.mark.parametrize("backend", ON_CPU)
def test_by_name_in_another_order(backend):
    """As torch's documentation does it: a hook that finds each parameter's entry by its name."""
    params = parameters(SHAPES)
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    optimizer = SOAP(named, backend=backend)
    train(optimizer, params, range(4))
    resumed = copies(params)
    backwards = [(name, p) for (name, _), p in zip(named, resumed, strict=True)][::-1]
    other = SOAP(backwards, backend=backend)

    def by_name(optimizer, state_dict):
        (group,) = state_dict["param_groups"]
        places = dict(zip(group["param_names"], group["params"], strict=True))
        names = optimizer.param_groups[0]["param_names"]
        return {
            "state": {i: state_dict["state"][places[name]] for i, name in enumerate(names)},
            "param_groups": [{**group, "param_names": names}],
        }

    other.register_load_state_dict_pre_hook(by_name)
    other.load_state_dict(optimizer.state_dict())
    for param, twin in zip(params, resumed, strict=True):
        assert_same_bits(optimizer.state[param], other.state[twin])
    train(optimizer, params, range(4, 6))
    train(other, resumed, range(4, 6))
    assert_same_bits(copies(resumed), copies(params))


@pytest.mark.parametrize("backend", ON_CPU)
def test_an_older_checkpoint_gets_defaults(backend):
    """Without counters of refreshes, and without options that came later."""
    params, optimizer = stepped(backend)
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        del entry["refreshes"], entry["off_diagonal"]
    for name in ("refresh_tolerance", "refresh_schedule", "correct_bias"):
        del saved["param_groups"][0][name]
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(saved)
    assert other.param_groups[0]["refresh_schedule"] == "periodic"
    assert set(other.stats()["refreshed"].values()) == {0}
    train(optimizer, params, range(4, 7))
    train(other, resumed, range(4, 7))
    assert_same_bits(copies(resumed), copies(params))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ON_CPU)
def test_state_stays_float32_under_small_parameters(backend, dtype):
    params = parameters(SHAPES, dtype)
    optimizer = SOAP(params, backend=backend, precondition_frequency=3)
    train(optimizer, params, range(4))
    resumed = copies(params)
    other = SOAP(resumed, backend=backend, precondition_frequency=3)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for entry in (*optimizer.state.values(), *other.state.values()):
        assert entry["exp_avg"].dtype == entry["exp_avg_sq"].dtype == torch.float32
        assert {m.dtype for m in entry["GG"] + entry["Q"] if m is not None} <= {torch.float32}
    train(optimizer, params, range(4, 6))
    train(other, resumed, range(4, 6))
    assert_same_bits(copies(resumed), copies(params))


@pytest.mark.parametrize("backend", ON_CPU)
def test_hooks_are_heard_in_torchs_order(backend):
    params = parameters(SHAPES)
    optimizer, heard = SOAP(params, backend=backend), []
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(lambda *_: heard.append("every pre")),
        torch_optimizer.register_optimizer_step_post_hook(lambda *_: heard.append("every post")),
    ]
    optimizer.register_step_pre_hook(lambda *_: heard.append("pre"))
    optimizer.register_step_post_hook(lambda *_: heard.append("post"))
    optimizer.register_state_dict_pre_hook(lambda _: heard.append("save"))
    optimizer.register_state_dict_post_hook(lambda *_: heard.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: heard.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda _: heard.append("loaded"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: heard.append("first"), prepend=True)
    try:
        for call in range(3):  # the third is a steady step of the fused kernels
            set_gradients(params, call)
            optimizer.step()
            assert heard == ["every pre", "pre", "post", "every post"]
            heard.clear()
        optimizer.load_state_dict(optimizer.state_dict())
        assert heard == ["save", "saved", "first", "load", "loaded"]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_step_hook_may_replace_the_closure(backend):
    params = parameters(((3, 3),))
    optimizer = SOAP(params, backend=backend)

    def closure():
        params[0].grad = torch.ones(3, 3)
        return 7.0

    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], closure), {}))
    assert optimizer.step() == 7.0
