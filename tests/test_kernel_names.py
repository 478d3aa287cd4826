"""No parameter of a kernel has a name that Triton's launch path takes for itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from soap_fast.backends.triton.launch.launcher import kernel
from soap_fast.backends.triton.launch.tuning import TUNING

pytest.importorskip("triton")


def backend():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    return make_backend(GPUTarget("cuda", 90, 32))


def binder(function):
    """What Triton generates for a function at its first launch, and the interpreter does not."""
    from triton.runtime.jit import JITFunction, create_function_from_signature

    jitted = JITFunction(function)
    return create_function_from_signature(jitted.signature, jitted.params, backend())


def of_one_parameter(the_parameter):
    """Its binder shows which names are there besides the parameters."""


def names_of_triton() -> Iterator[str]:
    from triton.runtime.jit import JITFunction

    generated = binder(of_one_parameter)
    yield from set(generated.__code__.co_varnames) - {"the_parameter"}
    yield from generated.__code__.co_names
    yield from set(generated.__globals__) - {"__builtins__"}
    # What a launch is given besides the kernel's own arguments, by keyword.
    yield from inspect.signature(JITFunction.run).parameters
    yield from vars(backend().parse_options({}))
    # Keywords that `run` adds or refuses; other strings in its code do no harm.
    for method in (JITFunction.run, JITFunction._pack_args):
        words = (word for word in method.__code__.co_consts if isinstance(word, str))
        yield from filter(str.isidentifier, words)


def test_triton_tells_its_own_names():
    """Were they to be found elsewhere one day, the test below would find no collision."""
    known = {"options", "params", "specialization", "specialize_impl", "backend", "dynamic_func"}
    known |= {"self", "args", "kwargs", "grid", "warmup", "debug", "device", "stream"}
    known |= {"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion"}
    assert known <= set(names_of_triton())


@pytest.mark.parametrize("op", TUNING)
def test_no_parameter_collides(op):
    function = kernel(op).fn
    parameters = inspect.signature(function).parameters
    assert not set(parameters) & set(names_of_triton())
    assert set(binder(function).__code__.co_varnames) > set(parameters)
