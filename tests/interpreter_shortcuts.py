"""Operators that Triton's interpreter has computed once are computed again by NumPy alone.

What an operator makes of operands of some types is a matter of these types: which it is promoted
to, how shapes are broadcast, which type the result has. Triton finds out each time, in some hundred
calls of Python. Here it does so the first time. Where all that it does is one call of NumPy on the
operands' arrays, the next time that call is made and the first result's type is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Operator = Callable[..., Any]
INTEGERS = ("int32", "int64")  # NumPy promotes them as Triton does
FLOATS = ("fp32", "fp64")
NEW_OR_WHOLE = [None, slice(None)]  # axes, in x[:, None]
PLAIN = (*INTEGERS, *FLOATS, "int1")
TAKES = {"int32": np.int32, "int64": np.int64, "fp32": np.float32}
UFUNCS = {
    "__add__": np.add, "__radd__": np.add, "__sub__": np.subtract, "__mul__": np.multiply,
    "__rmul__": np.multiply, "__and__": np.bitwise_and, "__or__": np.bitwise_or,
    "__lt__": np.less, "__le__": np.less_equal, "__gt__": np.greater, "__ge__": np.greater_equal,
    "__eq__": np.equal, "__ne__": np.not_equal,
}  # fmt: skip
ADDITIONS = ("__add__", "__radd__")
OF_BITS = ("__and__", "__or__")


class Known(NamedTuple):
    """Of an operator and operands of some types.

    Attributes:
        type: of the result.
        dtype: of its handle.
        number: an array in place of an operand that is a number.
        bytes: by which a pointer goes on for each element; 0 where there is none.
    """

    type: Any
    dtype: Any
    number: np.ndarray | None = None
    bytes: int = 0


class Loaded(NamedTuple):
    """Of a load with operands of some types.

    Attributes:
        dtype, shape: of what is loaded, as NumPy has them.
        mask, other: arrays in place of operands that are none or numbers.
        broadcasts: whether an operand has another shape.
    """

    known: Known
    dtype: Any
    shape: tuple[int, ...]
    mask: np.ndarray | None
    other: np.ndarray | None
    broadcasts: bool


class Shortcuts:
    """Of one version of Triton's interpreter."""

    def __init__(self, interpreter: ModuleType) -> None:
        self.core = interpreter.tl.core
        self.handle, self.dtype_of = interpreter.TensorHandle, interpreter._get_np_dtype
        self.load_by = interpreter._interpreter.load

    def of(self, owner: object, name: str, work: Operator) -> Operator:
        """What stands for a member of triton.language; itself where there is no shortcut."""
        if owner is self.core.tensor and name in UFUNCS:
            return self._computed(name, UFUNCS[name], work)
        if owner is self.core.tensor and name == "to":
            return self._cast(work)
        if owner is self.core.tensor and name == "__getitem__":
            return self._expanded(work)
        if name == "load" and owner is not self.core.tensor:
            return self._loaded(work)
        return work

    def made(self, data: np.ndarray, known: Known) -> Any:
        """A tensor of the type that is known."""
        handle = object.__new__(self.handle)
        handle.data, handle.dtype, handle.attr = data, known.dtype, {}
        return self.core.tensor(handle, known.type)

    def _key(self, of: Any) -> object:
        """Types of blocks are made once, see interpreter.py; names tell others apart."""
        return id(of) if type(of) is self.core.block_type else of.name

    def _computed(self, name: str, ufunc: np.ufunc, work: Operator) -> Operator:
        known: dict[object, Known | None] = {}
        tensor, constexpr, key_of = self.core.tensor, self.core.constexpr, self._key

        def call(one: Any, other: Any, *how: Any, **more: Any) -> Any:
            if type(other) is constexpr:
                other = other.value
            kind = type(other)
            key = (key_of(one.type), key_of(other.type) if kind is tensor else (kind, other))
            if key not in known:
                result = work(one, other, *how, **more)
                known[key] = self._learnt(name, one, other, result)
                return result
            found = known[key]
            if found is None:
                return work(one, other, *how, **more)
            with_ = other.handle.data if found.number is None else found.number
            if found.bytes:
                with_ = found.bytes * with_.astype(np.uint64)
            return self.made(ufunc(one.handle.data, with_), found)

        return call

    def _learnt(self, name: str, one: Any, other: Any, result: Any) -> Known | None:
        """None where an operator does more than its ufunc."""
        ours = one.type.scalar
        known = Known(result.type, result.handle.dtype)
        if isinstance(other, self.core.tensor):
            kind, number = other.type.scalar.name, None
        else:
            kind = "int32" if ours.is_ptr() else ours.name
            if not fits(other, kind):
                return None
            number = np.array([other], TAKES[kind])
        known = known._replace(number=number)
        if ours.is_ptr():
            width = max(1, ours.element_ty.primitive_bitwidth // 8)
            adds = name in ADDITIONS and kind in INTEGERS
            return known._replace(bytes=width) if adds else None
        if ours.name in INTEGERS:
            return known if kind in INTEGERS else None
        if ours.name == "int1":
            return known if kind == "int1" and number is None and name in OF_BITS else None
        return known if ours.name in FLOATS and kind == ours.name else None

    def _cast(self, work: Operator) -> Operator:
        known: dict[object, Known | None] = {}
        unwrap, key_of = self.core._unwrap_if_constexpr, self._key

        def call(one: Any, dtype: Any, *how: Any, **more: Any) -> Any:
            dtype = unwrap(dtype)
            key = key_of(one.type), dtype.name, *how, *more
            if key not in known:
                result = work(one, dtype, *how, **more)
                plain = not how and set(more) <= {"_semantic"}
                known[key] = self._learnt_of_cast(one, dtype, result) if plain else None
                return result
            found = known[key]
            if found is None:
                return work(one, dtype, *how, **more)
            data = one.handle.data
            return self.made(data.astype(found.number.dtype), found)

        return call

    def _learnt_of_cast(self, one: Any, dtype: Any, result: Any) -> Known | None:
        """None where another type is more than NumPy's."""
        ours = one.type.scalar.name
        plain = ours in PLAIN and dtype.name in (*INTEGERS, *FLOATS)
        if result is one or not (plain or (ours == "int64" and dtype.is_ptr())):
            return None
        of = np.empty(0, self.dtype_of(dtype))
        return Known(result.type, result.handle.dtype, of)

    def _expanded(self, work: Operator) -> Operator:
        """x[:, None] and the like."""
        known: dict[object, Known] = {}

        def call(one: Any, slices: Any, **more: Any) -> Any:
            plain = type(slices) is tuple and all(map(NEW_OR_WHOLE.__contains__, slices))
            if not plain or not one.type.is_block():
                return work(one, slices, **more)
            key = self._key(one.type), *[part is None for part in slices]
            found = known.get(key)
            if found is None:
                result = work(one, slices, **more)
                known[key] = Known(result.type, result.handle.dtype)
                return result
            return self.made(one.handle.data[slices], found)

        return call

    def _loaded(self, work: Operator) -> Operator:
        known: dict[object, Loaded | None] = {}
        unwrap, tensor, load = self.core._unwrap_if_constexpr, self.core.tensor, self.load_by

        def key_of(operand: Any) -> object:
            kind = type(operand)
            return self._key(operand.type) if kind is tensor else (kind, operand)

        def call(pointer: Any, mask: Any = None, other: Any = None, **more: Any) -> Any:
            mask, other = unwrap(mask), unwrap(other)
            key = key_of(pointer), key_of(mask), key_of(other), *more
            found = known.get(key)
            if found is None:
                result = work(pointer, mask, other, **more)
                if key not in known:
                    known[key] = self._learnt_of_load(pointer, mask, other, more, result)
                return result
            addresses = pointer.handle.data
            chosen = mask.handle.data if found.mask is None else found.mask
            beyond = other.handle.data if found.other is None else found.other
            if found.broadcasts:
                shape = found.shape
                addresses, chosen, beyond = (
                    part if part.shape == shape else np.broadcast_to(part, shape)
                    for part in (addresses, chosen, beyond)
                )
            return self.made(load(addresses, chosen, beyond, found.dtype), found.known)

        return call

    def _learnt_of_load(
        self, pointer: Any, mask: Any, other: Any, more: dict[str, Any], result: Any
    ) -> Loaded | None:
        """None where a load casts, or is of another kind."""
        of = pointer.type.scalar
        hints = {"cache_modifier", "eviction_policy", "_semantic"}
        if set(more) > hints or not of.is_ptr() or of.element_ty.name == "int1":
            return None
        if isinstance(mask, bool) or (mask is None and other is not None):
            return None
        dtype = self.dtype_of(of.element_ty)
        shape = result.handle.data.shape
        everywhere = None if isinstance(mask, self.core.tensor) else np.ones(shape, bool)
        beyond = None
        if not isinstance(other, self.core.tensor):
            beyond = np.full(shape, other or 0, dtype)
        elif other.type.scalar.name != of.element_ty.name:
            return None
        known = Known(result.type, result.handle.dtype)
        parts = [x.handle.data for x in (pointer, mask, other) if isinstance(x, self.core.tensor)]
        broadcasts = any(part.shape != shape for part in parts)
        return Loaded(known, dtype, shape, everywhere, beyond, broadcasts)


def fits(number: object, kind: str) -> bool:
    """Whether a number becomes such a type beside it, without a look at what it is.

    Zeros of two signs would be taken for one.
    """
    if type(number) is int:
        return kind in TAKES and -(2**31) <= number < 2**31
    return type(number) is float and kind == "fp32" and math.isfinite(number) and number != 0
