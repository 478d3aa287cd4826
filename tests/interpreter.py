"""Triton's interpreter without two things that it does for nothing and that took half of its time.

Names of triton.language are replaced for a launch, and all of them once more at each call of a
function within it: here once a launch for each set of modules that a function sees, which leaves
the same names replaced. Sums and products of integers are computed a second time in int64 to see
whether they overflow, but what is seen is reported only where the interpreter's options say
`debug`, which they do not.
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
