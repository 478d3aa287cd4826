"""What products read of the bases: transposed, joined, with rows that 16-byte loads can read.

All of it is derived and never saved; `derive` computes it again after the bases have changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.fused.layout import Layout, padded
from soap_fast.plan import Group

Matrix = tuple[int, list[tuple[int, int]], bool, int, int]  # see tables.derive_work


class Operands:
    """Addresses of the operands of all tensors, in one piece of memory.

    Attributes:
        forward: per tensor and group, the transposed basis.
        backward: the basis; its own memory where that will do.
        matrices: what must be derived.
    """

    def __init__(
        self, layouts: Sequence[Layout], bases: Sequence[Sequence[torch.Tensor | None]]
    ) -> None:
        self.forward: list[dict[Group, int]] = [{} for _ in layouts]
        self.backward: list[dict[Group, int]] = [{} for _ in layouts]
        self.matrices: list[Matrix] = []
        wanted: list[tuple[dict[Group, int], Group, list[tuple[int, int]], bool, int, int]] = []
        device = None
        for index, (layout, found) in enumerate(zip(layouts, bases, strict=True)):
            folded = (layout.folded,) if layout.folded else ()
            for group in (*folded, *layout.products):
                members = [_basis(found, mode) for mode in group.modes]
                device = members[0].device
                parts = [(q.data_ptr(), q.shape[0]) for q in members]
                rows, length = group.size, padded(group.size)
                if group is layout.folded:
                    rows = length = layout.fold_block
                wanted.append((self.forward[index], group, parts, True, rows, length))
                if len(parts) == 1 and rows == length == group.size and parts[0][0] % 16 == 0:
                    self.backward[index][group] = parts[0][0]
                else:
                    wanted.append((self.backward[index], group, parts, False, rows, length))
        total = sum(padded(rows * length) for *_, rows, length in wanted)
        self.memory = torch.empty(total, dtype=torch.float32, device=device or "cpu")
        address = self.memory.data_ptr()
        for addresses, group, parts, transposed, rows, length in wanted:
            addresses[group] = address
            self.matrices.append((address, parts, transposed, rows, length))
            address += 4 * padded(rows * length)


def _basis(bases: Sequence[torch.Tensor | None], mode: int) -> torch.Tensor:
    basis = bases[mode]
    assert basis is not None, "a rotated mode has a basis"
    return basis
