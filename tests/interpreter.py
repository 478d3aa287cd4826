"""Triton's interpreter without what it does for nothing, which took more than half of its time.

Names of triton.language are replaced for a launch, and all of them once more at each call of a
function within it: here once a launch for each set of modules that a function sees, which leaves
the same names replaced. Sums and products of integers are computed a second time in int64 to see
whether they overflow, but what is seen is reported only where the interpreter's options say
`debug`, which they do not. Each tensor writes down the type of its shape, which nobody reads, and
each look at NumPy's dtype for one of Triton's makes the table of all: here a type is made when it
is asked for, and a dtype looked up once.
"""

from __future__ import annotations

import dataclasses
import functools
from types import FunctionType, ModuleType
from typing import Any


def hasten() -> None:
    """Do so in this process, on every Triton that has what is replaced here (3.6 to 3.9 do)."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    if all(hasattr(interpreter, name) for name in ("GridExecutor", "_LangPatchScope")):
        _replace_names_once_a_launch(interpreter)
    options = getattr(interpreter.interpreter_builder, "options", None)
    if getattr(options, "sanitize_overflow", False) and not options.debug:
        quick = dataclasses.replace(options, sanitize_overflow=False)
        interpreter.interpreter_builder.options = quick
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    if hasattr(interpreter.tl.core, "_type_for_tuple_values"):
        _type_tuples_when_asked(interpreter.tl.core)


def _replace_names_once_a_launch(interpreter: ModuleType) -> None:
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[tuple[int, ...]] = set()  # modules, by identity, whose names are

    def replace_once(fn: FunctionType) -> Any:
        modules = _modules(fn, interpreter.tl)
        if modules in replaced:
            return interpreter._LangPatchScope()  # restores nothing
        scope = replace(fn)
        replaced.add(modules)
        return scope

    @functools.wraps(launch)
    def launch_anew(*args: Any, **kwargs: Any) -> None:
        replaced.clear()
        try:
            launch(*args, **kwargs)
        finally:
            replaced.clear()  # the launch has given the names back

    interpreter._patch_lang = replace_once
    interpreter.GridExecutor.__call__ = launch_anew


def _modules(fn: FunctionType, language: ModuleType) -> tuple[int, ...]:
    """Which of triton.language and its core a function's module has names for."""
    seen = {id(value) for value in fn.__globals__.values()}
    return tuple(id(each) for each in (language, language.core) if id(each) in seen)


def _by_name(dtype_of: Any) -> Any:
    """`dtype_of` with what it has found for Triton's dtypes of a name, which says all of them."""
    found: dict[str, Any] = {}

    def dtype(of: Any) -> Any:
        if of.name not in found:
            found[of.name] = dtype_of(of)
        return found[of.name]

    return dtype


def _type_tuples_when_asked(core: ModuleType) -> None:
    made, attribute = core.tuple.__init__, core.tuple.__getattr__

    def init(self: Any, args: Any, type: Any = None) -> None:
        if type is None:
            self.values = list(args)
        else:
            made(self, args, type)

    def getattribute(self: Any, name: str) -> Any:
        """Of what a tuple has not yet."""
        if name != "type":
            return attribute(self, name)
        self.type = core._type_for_tuple_values(self.values)
        return self.type

    core.tuple.__init__, core.tuple.__getattr__ = init, getattribute
