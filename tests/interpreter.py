"""Triton's interpreter without what it does for nothing, which took more than half of its time.

Names of triton.language are replaced for a launch, and all of them once more at each call of a
function within it: here once a launch for each set of modules that a function sees, which leaves
the same names replaced. Sums and products of integers are computed a second time in int64 to see
whether they overflow, but what is seen is reported only where the interpreter's options say
`debug`, which they do not. Each tensor writes down the type of its shape, which nobody reads, and
each look at NumPy's dtype for one of Triton's makes the table of all: here a type is made when it
is asked for, and a dtype looked up once.

An operation on tensors made two types and four constants, and went through the rules of promotion
and of broadcasting, where operands most often are of one type and one shape. Here types, shapes and
constants are made once, and rules asked where there is something to decide.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from types import FunctionType, ModuleType
from typing import Any

from interpreter_shortcuts import Shortcuts


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
    core = interpreter.tl.core
    if hasattr(core, "_type_for_tuple_values"):
        _type_tuples_when_asked(core)
    if "__init__" not in vars(core.base_value):
        _make_types_once(core)
        _leave_what_fits(interpreter.TritonSemantic, core)
        _take_what_is_no_list(core)
    if hasattr(interpreter, "_patch_attr"):
        _bring_the_semantic(interpreter)


def _replace_names_once_a_launch(interpreter: ModuleType) -> None:
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[tuple[int, ...]] = set()  # modules, by identity, whose names are
    met: set[FunctionType] = set()  # functions that see such modules
    nothing = interpreter._LangPatchScope()  # to be restored

    def replace_once(fn: FunctionType) -> Any:
        if fn in met:
            return nothing
        met.add(fn)
        modules = _modules(fn, interpreter.tl)
        if modules in replaced:
            return nothing
        scope = replace(fn)
        replaced.add(modules)
        return scope

    def forget() -> None:
        replaced.clear()
        met.clear()

    @functools.wraps(launch)
    def launch_anew(*args: Any, **kwargs: Any) -> None:
        forget()
        try:
            launch(*args, **kwargs)
        finally:
            forget()  # the launch has given the names back

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


def _make_types_once(core: ModuleType) -> None:
    """One type for blocks of a kind, and in it what each tensor of that type says of its shape."""
    made: dict[tuple[Any, ...], Any] = {}
    make = core.block_type.__init__

    def new(cls: type, element_ty: Any, shape: Any) -> Any:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        space = getattr(element_ty, "address_space", None)
        key = (cls, type(element_ty), element_ty.name, space, sizes)
        found = made.get(key)
        if found is None:
            found = object.__new__(cls)
            make(found, element_ty, shape)
            made[key] = found
        return found

    def describe(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type = handle, type
        found = vars(type).get("described")
        if found is None:
            sizes = tuple(type.shape if type.is_block() else ())
            found = type.described = *shapes(sizes), type.scalar
        self.shape, self.numel, self.dtype = found

    @functools.cache
    def shapes(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple(map(core.constexpr, sizes)), core.constexpr(math.prod(sizes))

    core.block_type.__new__, core.block_type.__init__ = new, lambda *_: None
    core.tensor.__init__ = describe


# Two operands of one of these types are computed with as they are; 16 bits are divided in 32.
AS_THEY_ARE = ("int1", "int32", "int64", "fp32", "fp64")
INTEGERS = ("int32", "int64")
# Numbers that become such a type beside it, without a look at what they are.
TAKES = {"int32": (int,), "int64": (int,), "fp32": (int, float)}


def _leave_what_fits(semantic: type, core: ModuleType) -> None:
    """Operands of one type need no promotion, those of one shape are not broadcast."""
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value

    def checked(self: Any, lhs: Any, rhs: Any, *how: Any, **more: Any) -> Any:
        left, right = isinstance(lhs, core.tensor), isinstance(rhs, core.tensor)
        if left and right:
            one, other = lhs.dtype.name, rhs.dtype.name
            pointer = how[:1] == (True,) and lhs.dtype.is_ptr() and other in INTEGERS
            if pointer or (one == other and one in AS_THEY_ARE):
                return broadcasted(self, lhs, rhs)
        elif left and fits(lhs.dtype.name, rhs):
            return lhs, constant(self, lhs.type, rhs)
        elif right and fits(rhs.dtype.name, lhs):
            return constant(self, rhs.type, lhs), rhs
        return check(self, lhs, rhs, *how, **more)

    def fits(of: str, number: Any) -> bool:
        return type(number) in TAKES.get(of, ()) and abs(number) < 2**31

    constants: dict[tuple[int, type, Any], tuple[Any, Any]] = {}

    def constant(self: Any, of: Any, number: Any) -> Any:
        """Everywhere in a tensor of a type; nobody writes into what an operator has given."""
        key = id(of), type(number), number
        if key not in constants:
            made = self.scalar_constant(number, of.scalar)
            if of.is_block():
                made = self.splat(made, of.shape)
            constants[key] = made, of
        return constants[key][0]

    def broadcasted(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else broadcast(self, lhs, rhs)

    semantic.binary_op_type_checking_impl = checked
    semantic.broadcast_impl_value = broadcasted


def _take_what_is_no_list(core: ModuleType) -> None:
    """Most of what is looked through for constants is a constant, or has none."""
    unwrap = core._unwrap_if_constexpr
    has_none = frozenset((core.tensor, int, float, bool, type(None)))

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        if kind is core.constexpr:
            return value.value
        return value if kind in has_none else unwrap(value)

    core._unwrap_if_constexpr = unwrapped


def _bring_the_semantic(interpreter: ModuleType) -> None:
    """Members of triton.language get it by name, where a wrapper and a filter looked for it.

    Where there is a shortcut, they are it.
    """
    shortcuts = Shortcuts(interpreter)
    made: dict[Any, Any] = {}  # by member: most are there in triton.language and in its core

    def patch(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        if (name, member) not in made:
            made[name, member] = shortcuts.of(obj, name, bound(member, builder))
        scope.set_attr(obj, name, made[name, member])

    def bound(member: Any, builder: Any) -> Any:
        semantic = interpreter.TritonSemantic(builder)
        work = getattr(member, "__wrapped__", member)

        def call(*args: Any, **how: Any) -> Any:
            how["_semantic"] = semantic
            return work(*args, **how)

        return call

    members: dict[int, list[tuple[str, Any]]] = {}  # by module or class, as they are outside

    def patch_all(pkg: Any, builder: Any, scope: Any) -> None:
        if id(pkg) not in members:
            every = inspect.getmembers(pkg)
            members[id(pkg)] = [(n, m) for n, m in every if interpreter.tl.core.is_builtin(m)]
        for name, member in members[id(pkg)]:
            patch(pkg, name, member, builder, scope)

    interpreter._patch_attr, interpreter._patch_builtin = patch, patch_all
