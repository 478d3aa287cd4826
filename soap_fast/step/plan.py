"""Which modes of a tensor carry a factor. Shapes and options in, a plan out; touches no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from soap_fast.options import PlanOptions

NHWC_TO_NCHW = (0, 3, 1, 2)

# Neighbouring modes rotate together while the product of their sizes stays within a warp's width:
# 3 x 3 and 5 x 5 kernels do, and their Gram matrix is one small product in place of two.
JOINT = 32


@dataclass(frozen=True)
class Group:
    """Neighbouring modes that are treated as one.

    Attributes:
        modes: indices of the modes, in order; none of size 1.
        size: product of their sizes.
        rotated: whether they have factors. Their joint basis is the Kronecker product of theirs.
    """

    modes: tuple[int, ...]
    size: int
    rotated: bool


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is preconditioned.

    Attributes:
        shape: shape of the parameter.
        order: permutation of the axes before merging; the identity except for
            `data_format="channels_last"` with `merge_dims`.
        modes: sizes of the modes, counted after `order` and merging.
        factors: per mode the size of its factor, or None where it has none: too large, of size 1
            (its basis is the identity), or a 1-D tensor without `precondition_1d`.
        groups: the modes without those of size 1, small neighbours joined.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    modes: tuple[int, ...]
    factors: tuple[int | None, ...]
    groups: tuple[Group, ...]

    @property
    def permuted(self) -> bool:
        return self.order != tuple(range(len(self.shape)))


@lru_cache(maxsize=4096)
def plan_tensor(shape: tuple[int, ...], options: PlanOptions) -> TensorPlan:
    """Plan one tensor. A pure function of its arguments."""
    order = tuple(range(len(shape)))
    modes = shape
    if options.merge_dims and len(shape) != 1 and 0 not in shape:
        if options.data_format == "channels_last" and len(shape) == 4:
            order = NHWC_TO_NCHW
        modes = merge_small_modes(tuple(shape[i] for i in order), options.max_precond_dim)

    eligible = eligible_modes(shape, modes, options)
    factors = tuple(
        size if size > 1 and may and 0 not in shape else None
        for size, may in zip(modes, eligible, strict=True)
    )
    return TensorPlan(shape, order, modes, factors, join(modes, factors))


def join(modes: tuple[int, ...], factors: tuple[int | None, ...]) -> tuple[Group, ...]:
    """Groups of neighbouring modes: small ones with factors from the right, all without factors."""
    groups: list[Group] = []
    for mode in reversed(range(len(modes))):
        if modes[mode] == 1:
            continue
        one = Group((mode,), modes[mode], factors[mode] is not None)
        if groups and one.rotated == groups[0].rotated:
            both = Group(one.modes + groups[0].modes, one.size * groups[0].size, one.rotated)
            if not both.rotated or both.size <= JOINT:
                one = both
                del groups[0]
        groups.insert(0, one)
    return tuple(groups)


def eligible_modes(
    shape: tuple[int, ...], modes: tuple[int, ...], options: PlanOptions
) -> tuple[bool, ...]:
    """Which modes the reference gives a factor, those of size 1 included."""
    # The test for a vector comes before merging: a matrix merged to one mode still has a factor.
    preconditioned = len(shape) != 1 or options.precondition_1d
    return tuple(preconditioned and size <= options.max_precond_dim for size in modes)


def merge_small_modes(shape: tuple[int, ...], largest: int) -> tuple[int, ...]:
    """Merge neighbouring modes from the left while their product stays <= `largest`.

    Source: the reference's `merge_dims`, whose exact order of decisions is kept, so that factors
    of existing checkpoints fit.
    """
    merged: list[int] = []
    open_mode = 1
    for size in shape:
        if open_mode * size <= largest:
            open_mode *= size
        elif open_mode > 1:
            merged.append(open_mode)
            open_mode = size
        else:
            merged.append(size)
            open_mode = 1
    if open_mode > 1 or not merged:
        merged.append(open_mode)
    return tuple(merged)
