"""How many kernels or operators a call of an op launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from soap_fast import SOAP, explain


def kernels_of_a_step(optimizer: SOAP) -> int:
    """Launches of a plain step of the Triton backend."""
    found = explain(optimizer)
    return len(found.launches) + len(found.without_tiles)


class _Operators(TorchDispatchMode):
    """Counts operators that compute tensors: neither views, bare allocations nor questions."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = (*op._schema.arguments, *op._schema.returns)
        of_tensors = any("Tensor" in str(value.type) for value in values)
        aliases = [value.alias_info for value in op._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        allocates = op.overloadpacket.__name__.startswith(("empty", "new_empty"))
        self.count += of_tensors and not view and not allocates
        return op(*args, **(kwargs or {}))


def operators(call: Callable[[], object]) -> int:
    """How many operators that compute a call makes, our extension's included."""
    with _Operators() as seen:
        call()
    return seen.count
