"""What interpreter.py replaces in Triton's interpreter changes no launch, but for its time."""

from __future__ import annotations

import pytest
import torch
from streams import needs_interpreter

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = needs_interpreter
REPLACED = ((tl, "arange"), (tl, "range"), (tl.tensor, "__add__"), (tl.tensor, "__index__"))


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def four_times(values, SIZE: tl.constexpr, FAILS: tl.constexpr):
    places = values + tl.arange(0, SIZE)
    x = doubled(doubled(tl.load(places)))
    if FAILS:
        x = doubled(None)
    tl.store(places, x + tl.sum(x, axis=0))


def test_names_are_replaced_once_a_launch_and_given_back():
    from triton.runtime import interpreter

    before = [getattr(owner, name, None) for owner, name in REPLACED]
    for fails in (False, True, False):
        values = torch.arange(8.0)
        if fails:
            with pytest.raises(interpreter.InterpreterError):
                four_times[(2,)](values, 8, fails)
        else:
            four_times[(1,)](values, 8, fails)
            assert torch.equal(values, 4 * torch.arange(8.0) + 4 * 28)
        assert [getattr(owner, name, None) for owner, name in REPLACED] == before


def test_what_is_not_reported_is_not_computed():
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    assert options.debug or not options.sanitize_overflow


def test_functions_within_a_launch_replace_no_names_again(monkeypatch):
    from triton.runtime import interpreter

    replaces, replace = [], interpreter._patch_lang

    def counted(fn):
        scope = replace(fn)
        replaces.append(bool(scope._changes))
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", counted)
    four_times[(3,)](torch.arange(8.0), 8, False)
    assert len(replaces) > 6
    assert sum(replaces) <= 3  # for our module, and for those of Triton with other names


def test_a_tuple_has_a_type_when_it_is_asked_for_one():
    sizes = tl.core.tuple([tl.constexpr(2), tl.constexpr(3)])
    assert "type" not in vars(sizes)
    assert sizes.type == tl.core.tuple_type([value.type for value in sizes.values])
    assert vars(sizes)["type"] is sizes.type
    named = tl.core.tuple_type([value.type for value in sizes.values], ["rows", "columns"])
    assert tl.core.tuple(sizes.values, named).columns is sizes.values[1]


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (tl.float16, "float16"),
        (tl.bfloat16, "uint16"),
        (tl.block_type(tl.int32, [4, 2]), "int32"),
        (tl.pointer_type(tl.float32), "uint64"),
        (tl.block_type(tl.pointer_type(tl.float32), [4]), "uint64"),
    ],
)
def test_numpys_dtypes_are_those_that_triton_gives(of, expected):
    from triton.runtime import interpreter

    assert [str(interpreter._get_np_dtype(of)) for _ in range(2)] == [expected] * 2
