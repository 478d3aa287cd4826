"""How one tensor lies in the workspace, and which products rotate it. Pure: touches no tensor.

The workspace holds a tensor as a plane [fold, positions]: the smallest of its rotated groups of
modes, where that is at most 32, becomes the slowest axis and is rotated while the gradient is
gathered and while the update is applied. The others are rotated by products, each of which
contracts the contiguous axis and writes its output as the slowest axis behind the fold, so that
after all of them the order has cycled back. The contiguous axis is padded to a multiple of four
elements, by zeros: 16 bytes at a time can be loaded.

exp_avg and exp_avg_sq lie as the plane does, padding included, in which nothing is ever read;
`state_view` shows them in the parameter's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch

from soap_fast.step.plan import JOINT, Group, TensorPlan

# Folds of two modes that gather and apply keep in a lane's registers, a row each: kernels of 3 x 3
# and 5 x 5, 0.2 to 0.95 of the elements of the models of the paper.
PAIRS = ((3, 3), (5, 5))


def padded(size: int) -> int:
    """Up to a multiple of four elements, 16 bytes."""
    return -(-size // 4) * 4


@dataclass(frozen=True)
class Level:
    """One product out[m, n] = sum_k a[m, k] b[n, k], both rows contiguous.

    One operand is the basis, the other the rows of the plane. n counts positions: of every `pitch`
    the first `inner` are rows of b, the rest is padding. Position n of row m goes to
    (n // block) * block_stride + m * row_stride + n % block.
    """

    group: Group
    basis_first: bool
    m: int
    n: int
    k: int  # padded
    inner: int
    pitch: int
    block: int
    block_stride: int
    row_stride: int

    @property
    def flops(self) -> int:
        """What the product needs: no padding."""
        rows = self.n // self.pitch * self.inner
        return 2 * self.m * rows * self.group.size


@dataclass(frozen=True)
class GramTask:
    """K = sum over runs of x[i, :] x[j, :], a run `length` long; or of x[:, i] x[:, j].

    In the first form rows lie `row_stride` apart and runs `run_stride`; in the second, for the
    contiguous mode, there is one run of rows that lie `row_stride` apart.
    """

    group: Group
    contiguous: bool
    row_stride: int
    runs: int
    run_stride: int
    length: int
    terms: int  # that are summed, without padding

    @property
    def flops(self) -> int:
        """Of the lower triangle, its diagonal included."""
        return self.group.size * (self.group.size + 1) * self.terms


@dataclass(frozen=True)
class Layout:
    plan: TensorPlan

    @cached_property
    def folded(self) -> Group | None:
        """Joined modes before single ones, which products can rotate as well; then the smallest."""
        small = [g for g in self.plan.groups if g.rotated and g.size <= JOINT]
        return min(reversed(small), key=lambda g: (-len(g.modes), g.size), default=None)

    @cached_property
    def products(self) -> tuple[Group, ...]:
        """Modes that products rotate, in the order of the plane, each a group of its own."""
        rest = [g for g in self.plan.groups if g.rotated and g is not self.folded]
        modes = [mode for group in rest for mode in group.modes]
        return tuple(Group((mode,), self.plan.modes[mode], True) for mode in modes)

    @cached_property
    def plain(self) -> tuple[Group, ...]:
        return tuple(g for g in self.plan.groups if not g.rotated)

    @property
    def fold(self) -> int:
        return self.folded.size if self.folded else 1

    @property
    def pair(self) -> bool:
        """Whether the fold is rotated in registers, one of its two modes after the other."""
        return self.folded is not None and self.fold_sizes in PAIRS

    @property
    def fold_sizes(self) -> tuple[int, ...]:
        """Sizes of the folded modes."""
        return tuple(self.plan.modes[m] for m in self.folded.modes) if self.folded else ()

    @cached_property
    def operands(self) -> tuple[tuple[Group, ...], ...]:
        """The groups whose bases kernels read, those together that lie behind each other."""
        products = tuple((group,) for group in self.products)
        if self.folded is None:
            return products
        modes = tuple(Group((m,), self.plan.modes[m], True) for m in self.folded.modes)
        return (modes if self.pair else (self.folded,), *products)

    @property
    def fold_sums(self) -> int:
        """Numbers that a tile of gather leaves of the folded modes' Gram matrices.

        Of a pair the two lower triangles, in a power of two; else the joint matrix in its tile.
        """
        if not self.pair:
            return self.fold_block**2 if self.folded else 0
        d = self.fold_sizes[0]
        return 1 << (d * (d + 1) - 1).bit_length()

    @property
    def fold_block(self) -> int:
        """Width of the tile that holds the folded mode."""
        return 1 if self.fold == 1 else 16 if self.fold <= 16 else 32

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """Sizes behind the fold: plain, then products."""
        sizes = tuple(g.size for g in (*self.plain, *self.products))
        return sizes or (1,)

    @property
    def inner(self) -> int:
        return self.axes[-1]

    @property
    def pitch(self) -> int:
        return padded(self.inner)

    @property
    def positions(self) -> int:
        return prod(self.axes[:-1]) * self.pitch

    @cached_property
    def numel(self) -> int:
        return prod(self.plan.shape)

    @cached_property
    def memory(self) -> tuple[int, int]:
        """Elements of the two planes, multiples of 4: products read one and write the other."""
        stages = [self.fold * self.positions]
        batch = self.fold * prod(g.size for g in self.plain)
        sizes = [g.size for g in self.products]
        for _ in self.products:
            sizes = [sizes[-1], *sizes[:-1]]
            stages.append(batch * prod(sizes[:-1]) * padded(sizes[-1]))
        count = len(self.products)  # the rotation back goes through the same stages once more
        passed = [*enumerate(stages), *((place + count, n) for place, n in enumerate(stages))]
        first, second = (
            max((n for place, n in passed if place % 2 == parity), default=0) for parity in (0, 1)
        )
        if self.folded and not self.products:  # a refresh carries both moments by planes
            second = first
        return first, second

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The products of a rotation, in order; those of the rotation back are the same."""
        batch = self.fold * prod(g.size for g in self.plain)
        groups = list(self.products)
        if len(groups) == 1:
            d, pitch = groups[0].size, padded(groups[0].size)
            return (Level(groups[0], False, batch, pitch, pitch, d, pitch, pitch, 0, pitch),)
        levels = []
        for _ in self.products:
            *rest, last = groups
            d, inner, middle = last.size, rest[-1].size, prod(g.size for g in rest[:-1])
            pitch = padded(inner)
            block = middle * pitch
            levels.append(
                Level(
                    last,
                    True,
                    d,
                    batch * block,
                    padded(d),
                    inner,
                    pitch,
                    block,
                    d * block,
                    block,
                )
            )
            groups = [last, *rest]
        return tuple(levels)

    @cached_property
    def grams(self) -> tuple[GramTask, ...]:
        """One per group that is rotated by products."""
        tasks = []
        batch = self.fold * prod(g.size for g in self.plain)
        sizes = [g.size for g in self.products]
        for place, group in enumerate(self.products):
            before, terms = batch * prod(sizes[:place]), self.numel // group.size
            if place == len(sizes) - 1:
                tasks.append(GramTask(group, True, self.pitch, 1, 0, before, terms))
            else:
                run = prod(sizes[place + 1 : -1]) * self.pitch
                tasks.append(GramTask(group, False, run, before, group.size * run, run, terms))
        return tuple(tasks)

    @cached_property
    def physical_modes(self) -> tuple[int, ...]:
        """Modes larger than 1 in the order in which they lie in the plane."""
        order = [self.folded] if self.folded else []
        return tuple(m for group in (*order, *self.plain, *self.products) for m in group.modes)

    @property
    def elements(self) -> int:
        """Of a plane, exp_avg or exp_avg_sq, padding included."""
        return self.fold * self.positions

    def state_view(self, flat: torch.Tensor) -> torch.Tensor:
        """exp_avg or exp_avg_sq in the parameter's shape, not copied.

        Args:
            flat: [elements], as the planes lie, or [numel] without their padding.
        """
        pitch = self.pitch if flat.numel() == self.elements else self.inner
        plan, ones = self.plan, [m for m, size in enumerate(self.plan.modes) if size == 1]
        physical = [*self.physical_modes, *ones]
        sizes = [plan.modes[m] for m in physical]
        strides, step = [], 1
        for size in reversed(sizes):  # to the end of the contiguous axis, and from its pitch on
            step = pitch if step == self.inner else step
            strides.append(step)
            step *= size
        by_mode = flat.as_strided(sizes, strides[::-1])
        by_mode = by_mode.permute([physical.index(m) for m in range(len(plan.modes))])
        ordered = by_mode.view([plan.shape[i] for i in plan.order])
        return ordered.permute([plan.order.index(i) for i in range(len(plan.order))])

    @cached_property
    def state_strides(self) -> tuple[int, ...]:
        """Strides of `state_view` with padding."""
        return self.state_view(torch.empty(self.elements, device="meta")).stride()

    @cached_property
    def dense_strides(self) -> tuple[int, ...]:
        """Strides of `state_view` without padding."""
        return self.state_view(torch.empty(self.numel, device="meta")).stride()


def axes_of(layout: Layout, stride: tuple[int, ...]) -> tuple[list[tuple[int, int]], ...]:
    """(size, stride) of the axes of a strided tensor, for rows and for the fold, innermost first.

    Neighbours that lie behind each other in memory are one axis.
    """
    of_mode = _axes_of_modes(layout, stride)
    fold = set(layout.folded.modes) if layout.folded else set()
    rows = [a for m in layout.physical_modes if m not in fold for a in of_mode[m]]
    folded = [a for m in layout.physical_modes if m in fold for a in of_mode[m]]
    return _collapsed(rows), _collapsed(folded)


@dataclass(frozen=True)
class Walk:
    """How gather and apply find a tensor's elements; axes are (size, stride), innermost first.

    Attributes:
        lines, columns: axes before the contiguous one of the plane, and of this one.
        fold: axes of the fold.
        pair: strides of the modes of a fold that is rotated in registers.
        linear: whether elements lie in the order of positions, with the fold innermost.
    """

    lines: list[tuple[int, int]]
    columns: list[tuple[int, int]]
    fold: list[tuple[int, int]]
    pair: tuple[int, ...]
    linear: bool


def walk_of(layout: Layout, stride: tuple[int, ...]) -> Walk:
    """Of a tensor of these strides."""
    of_mode = _axes_of_modes(layout, stride)
    inner = [group.modes for group in (*layout.plain, *layout.products)][-1:]
    columns = [a for modes in inner for m in modes for a in of_mode[m]]
    fold = set(layout.folded.modes) if layout.folded else set()
    outer = (m for m in layout.physical_modes if m not in {*fold, *(inner[0] if inner else ())})
    lines = [a for m in outer for a in of_mode[m]]
    folded = [a for m in layout.physical_modes if m in fold for a in of_mode[m]]
    wanted = [(layout.fold, 1)] if fold else []
    linear = layout.inner == layout.pitch and _collapsed(folded) == wanted
    linear = linear and _collapsed(lines + columns) == [(layout.positions, layout.fold)]
    # A mode of a pair is prime, so it is one axis.
    folded_modes = layout.folded.modes if layout.folded and layout.pair else ()
    pair = tuple(of_mode[m][0][1] for m in folded_modes)
    return Walk(_collapsed(lines), _collapsed(columns), _collapsed(folded), pair, linear)


def _axes_of_modes(layout: Layout, stride: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """By mode, (size, stride) of the tensor's axes in it, the outermost first."""
    plan = layout.plan
    real = iter([(plan.shape[i], stride[i]) for i in plan.order if plan.shape[i] != 1])
    of_mode: list[list[tuple[int, int]]] = []
    for size in plan.modes:  # a merged mode consists of several axes of the tensor
        axes: list[tuple[int, int]] = []
        while prod(length for length, _ in axes) < size:
            axes.append(next(real))
        of_mode.append(axes)
    return of_mode


def _collapsed(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for size, stride in reversed(axes):
        if found and stride == found[-1][0] * found[-1][1]:
            found[-1] = (found[-1][0] * size, found[-1][1])
        else:
            found.append((size, stride))
    return found


@lru_cache(maxsize=4096)
def layout_of(plan: TensorPlan) -> Layout:
    return Layout(plan)
