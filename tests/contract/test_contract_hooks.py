"""Hooks of a step, of saving and of loading: all of them, in torch's order."""

from __future__ import annotations

import torch
from streams import assert_same_bits
from subject import assert_equal, copies, follow, on_every_backend, started
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from soap_fast import SOAP

SHAPES = ((3, 2), (3,))


@on_every_backend
def test_hooks_around_a_step_run_in_torchs_order(backend):
    params, optimizer = started(backend, SHAPES, calls=2)
    heard = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: heard.append("pre 1")),
        optimizer.register_step_pre_hook(lambda *_: heard.append("pre 2")),
        optimizer.register_step_post_hook(lambda *_: heard.append("post")),
        register_optimizer_step_pre_hook(lambda *_: heard.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: heard.append("global post")),
    ]
    order = ["global pre", "pre 1", "pre 2", "post", "global post"]
    try:
        follow(optimizer, params, [2])
        assert heard == order
        handles[1].remove()
        follow(optimizer, params, [3])
        assert heard[5:] == [name for name in order if name != "pre 2"]
    finally:
        for handle in handles:
            handle.remove()
    follow(optimizer, params, [4])
    assert len(heard) == 9


@on_every_backend
def test_a_hook_before_the_step_may_change_gradients_options_and_arguments(backend):
    """What it does is part of this step, not of the next; also where nothing else is new."""
    plain, expected = started(backend, SHAPES)
    hooked, optimizer = started(backend, SHAPES)
    losses = []

    def intervene(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["lr"] = 0.5
            for param in group["params"]:
                param.grad = param.grad * 2
        return args, {"closure": lambda: 7.0}

    optimizer.register_step_pre_hook(intervene)
    for call in range(4):
        follow(expected, plain, [])
        expected.param_groups[0]["lr"] = 0.5
        generator = torch.Generator().manual_seed(call)
        for param, other in zip(plain, hooked, strict=True):
            grad = torch.randn(param.shape, generator=generator).to(param.device)
            param.grad, other.grad = grad * 2, grad
        expected.step()
        losses.append(optimizer.step())
    assert_equal(hooked, plain)
    assert losses == [7.0] * 4


@on_every_backend
def test_a_hook_after_the_step_sees_what_it_did(backend):
    params, optimizer = started(backend, SHAPES, calls=2)
    seen = []
    optimizer.register_step_post_hook(lambda opt, *_: seen.append(opt.state[params[0]]["calls"]))
    follow(optimizer, params, [2, 3])
    assert seen == [3, 4]


@on_every_backend
def test_hooks_of_saving_run_in_order_and_may_replace_what_is_saved(backend):
    _, optimizer = started(backend, SHAPES, calls=2)
    heard = []

    def wrap(optimizer, state_dict):
        heard.append("post 2")
        return {**state_dict, "note": "kept"}

    optimizer.register_state_dict_pre_hook(lambda _: heard.append("pre 2"))
    optimizer.register_state_dict_pre_hook(lambda _: heard.append("pre 1"), prepend=True)
    optimizer.register_state_dict_post_hook(wrap)
    optimizer.register_state_dict_post_hook(lambda *_: heard.append("post 1"), prepend=True)
    assert optimizer.state_dict()["note"] == "kept"
    assert heard == ["pre 1", "pre 2", "post 1", "post 2"]


@on_every_backend
def test_hooks_of_loading_run_in_order_and_may_replace_what_is_loaded(backend):
    params, optimizer = started(backend, SHAPES, calls=2)
    saved = optimizer.state_dict()
    other = SOAP(copies(params), backend=backend)
    heard = []

    def unwrap(optimizer, state_dict):
        heard.append("pre 2")
        return state_dict["inside"]

    other.register_load_state_dict_pre_hook(unwrap)
    other.register_load_state_dict_pre_hook(lambda *_: heard.append("pre 1"), prepend=True)
    other.register_load_state_dict_post_hook(lambda _: heard.append("post 2"))
    other.register_load_state_dict_post_hook(lambda _: heard.append("post 1"), prepend=True)
    given = {"inside": saved}
    other.load_state_dict(given)
    assert heard == ["pre 1", "pre 2", "post 1", "post 2"]
    assert given.keys() == {"inside"}
    assert_same_bits(other.state_dict(), saved)
