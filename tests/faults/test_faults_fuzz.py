"""Random shapes, strides, dtypes, options and histories: what must always hold, holds."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from subjects import (
    BACKENDS,
    one_thread,  # noqa: F401
)
from trial import Trial, laid_out

from soap_fast import SOAP

pytestmark = pytest.mark.usefixtures("one_thread")
# 300 in the suite, as many as it is asked for by `make soak`; interpreted kernels a thirtieth.
EXAMPLES = int(os.environ.get("SOAP_FAST_EXAMPLES", "300"))
LOOSE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = ["contiguous", "permuted", "sliced"]

shapes = st.one_of(
    st.lists(st.integers(1, 4), max_size=3),
    st.lists(st.integers(0, 3), max_size=5),
    st.lists(st.sampled_from([1, 2, 9]), min_size=2, max_size=2),
).map(tuple)
options = st.fixed_dictionaries(
    {"noise_floor": st.just(0.0)},  # what steps are held to here has none
    optional={
        # Not beta2 = 0, which divides what is left of m by eps alone where a gradient is zero.
        "betas": st.sampled_from([(0.9, 0.95), (0.0, 0.9), (0.9, 0.5)]),
        "shampoo_beta": st.sampled_from([-1, 0.0, 0.8]),
        "eps": st.sampled_from([1e-8, 1e-4, 0.0]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "precondition_frequency": st.integers(1, 4),
        "max_precond_dim": st.sampled_from([0, 2, 3, 10000]),
        "merge_dims": st.booleans(),
        "precondition_1d": st.booleans(),
        "normalize_grads": st.booleans(),
        "data_format": st.sampled_from(["channels_first", "channels_last"]),
        "correct_bias": st.booleans(),
        "refresh_tolerance": st.sampled_from([0.0, 0.3]),
        "refresh_schedule": st.sampled_from(["periodic", "staggered"]),
    },
)
gradients = st.lists(
    st.sampled_from(["fine", "fine", "fine", "fine", "nan", "zero", "missing"]),
    min_size=1,
    max_size=3,
)
others = st.sampled_from(["moved", "saved and loaded", "copied", "another rate", "newcomer"])
events = st.lists(st.one_of(gradients, gradients, others), min_size=3, max_size=9)


@st.composite
def parameter(draw, dtypes):
    shape, dtype = draw(shapes), draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(shape, generator=generator).to(dtype)
    return torch.nn.Parameter(laid_out(values, draw(st.sampled_from(LAYOUTS))))


def live(data, backend: str) -> None:
    """One history, whatever it is made of."""
    dtypes = [d for d in DTYPES if backend != "triton" or d != torch.float64]
    most = 3 if backend != "triton" else 2
    params = data.draw(st.lists(parameter(dtypes), min_size=1, max_size=most), label="parameters")
    optimizer = SOAP(params, backend=backend, **data.draw(options, label="options"))
    trial = Trial(optimizer, data.draw(st.integers(0, 2**20), label="seed"))
    layouts = st.lists(st.sampled_from([*LAYOUTS, "expanded"]), min_size=1, max_size=3)
    layouts = data.draw(layouts, label="layouts of gradients")
    for event in data.draw(events, label="events"):
        try:
            happen(trial, event, layouts, data, backend, dtypes)
        except ValueError as error:
            assume("no Triton kernel serves" not in str(error))
            raise


def happen(trial: Trial, event, layouts, data, backend: str, dtypes) -> None:
    match event:
        case list():
            trial.step(event, layouts)
        case "moved":
            trial.moved()
        case "saved and loaded":
            trial.saved_and_loaded(backend)
        case "copied":
            trial.copied()
        case "another rate":
            trial.rate(data.draw(st.sampled_from([0.0, 1e-3, 1e-2])), data.draw(st.booleans()))
        case "newcomer":
            newcomer = data.draw(parameter(dtypes))
            group = {"params": [newcomer], **data.draw(options)}
            trial.optimizer.add_param_group(group)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values[0] != "triton"])
@settings(max_examples=EXAMPLES // 2, suppress_health_check=LOOSE)
@given(data=st.data())
def test_any_history(backend, data):
    live(data, backend)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values[0] == "triton"])
@settings(max_examples=max(1, EXAMPLES // 30), suppress_health_check=LOOSE)
@given(data=st.data())
def test_any_history_of_interpreted_kernels(backend, data):
    live(data, backend)


def transpose_gradients(optimizer, *_) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad = param.grad.T


def identity_factors(optimizer, *_) -> None:
    for entry in optimizer.state.values():
        for k in entry["GG"]:
            k.copy_(torch.eye(len(k)))


@pytest.mark.parametrize("fault", [transpose_gradients, identity_factors])
@pytest.mark.parametrize("calls", [0, 1], ids=["first call", "later call"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_history_of_other_gradients_or_factors_is_noticed(backend, calls, fault):
    trial = Trial(SOAP([torch.nn.Parameter(torch.ones(3, 3))], backend=backend), seed=0)
    for _ in range(calls):
        trial.step(["fine"], ["contiguous"])
    if fault is transpose_gradients:
        trial.optimizer.register_step_pre_hook(fault)
    else:
        trial.optimizer.register_step_post_hook(fault)
    with pytest.raises(AssertionError, match=r"GG\[0\]"):
        trial.step(["fine"], ["contiguous"])
