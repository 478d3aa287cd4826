"""derive against its twin: products of small bases, as the other kernels read them."""

from __future__ import annotations

from compared import close
from tolerances import U

from soap_fast.backends.triton.ops import derive


def test_derive(alone):
    before, after = alone.seen["derive"]
    for index, layout in enumerate(alone.layouts):
        for group in (group for groups in layout.operands for group in groups):
            bases = [before[f"Q{mode} {index}"].double() for mode in group.modes]
            for back in (False, True):
                found = alone.operand(after, index, group, back=back)
                expected = derive.derive(bases, not back, *found.shape)
                close(found, expected, len(bases) * U * expected.abs(), (index, group, back))
