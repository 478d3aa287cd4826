"""A fused step launched kernel by kernel, with all of its memory before and after each of them."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from soap_fast import SOAP
from soap_fast.backends.triton import engine as engines
from soap_fast.backends.triton import memory, programs
from soap_fast.backends.triton.backend import _multiprocessors
from soap_fast.backends.triton.launch.launcher import Launch, TritonLauncher, kernel
from soap_fast.backends.triton.ops import fold_gram
from soap_fast.step.call import UNSCALED
from soap_fast.triton_kernels.columns import SCALARS, TENSOR

Memory = dict[str, torch.Tensor]
STATE = ("exp_avg", "exp_avg_sq", "step", "skipped")


class Seen(NamedTuple):
    """What a launch found and what it left, on the CPU."""

    before: Memory
    after: Memory


@contextmanager
def short_sums(chunks: int):
    """Gram matrices in parts of so many chunks, which small tensors would not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "GRAM_CHUNKS", chunks)
        patch.setattr(programs, "GRAM_CHUNKS", chunks)
        yield


def argument(launch: Launch, name: str) -> torch.Tensor:
    """An argument of a launch by the kernel's name for it."""
    names = list(inspect.signature(kernel(launch.op).fn).parameters)
    return launch.arguments[names.index(name)]


class LaunchedAlone:
    """An engine of tensors after their first call, all of its memory NaN until a kernel writes it.

    Attributes:
        calls: as the optimizer's step hands them to a backend.
        seen: by launch, a rotation's number behind its name.
    """

    def __init__(self, groups: list[dict], precision: str) -> None:
        """Parameters need gradients, which begin the state; moments and clocks become random."""
        optimizer = SOAP(groups, backend="eager")
        optimizer.step()
        self.calls = list(optimizer._calls(UNSCALED))
        generator = torch.Generator().manual_seed(1)
        for place, call in enumerate(self.calls):
            for name in ("exp_avg", "exp_avg_sq"):
                moment = torch.randn(call.param.shape, generator=generator)
                call.state[name].copy_(moment if name == "exp_avg" else moment**2 * 0.1)
            call.state["step"].fill_(place)
        device = self.calls[0].param.device
        launcher = TritonLauncher(_multiprocessors(device))
        self.engine = engines.Engine(self.calls, launcher, precision)
        self.members = self.engine.memory.members
        self.layouts = self.engine.layouts
        self.options = [call.options for call in self.calls]
        self.seen: dict[str, Seen] = {}
        self.grads: list[torch.Tensor | None] = []
        engine = self.engine
        own = engine.memory
        scalars = own.scalars.view(-1, len(SCALARS))[:-1]  # the last row stays zero
        for found in (own.a, own.b, own.operands.memory, scalars, engine.squares):
            found.fill_(float("nan"))
        engine.directions.fill_(float("nan"))

    def step(self, grads: list[torch.Tensor | None], inverse_scale: float) -> None:
        engine = self.engine
        engine.upload(grads, self.options)
        self.grads = [None if grad is None else grad.detach().cpu().double() for grad in grads]
        argument(*engine.launches["gather"], "inverse_scale").fill_(inverse_scale)
        names: dict[str, int] = {}
        before = self.memory()
        plain = (launch for place in programs.STEP for launch in engine.launches[place])
        for launch in (*engine.derive, *plain):
            engine.launcher(launch)
            after = self.memory()
            name = launch.op
            if name == "rotate":
                names[name] = names.get(name, 0) + 1
                name = f"rotate {names[name] - 1}"
            self.seen[name] = Seen(before, after)
            before = after

    @property
    def deepest(self) -> int:
        return max(len(layout.levels) for layout in self.layouts)

    def memory(self) -> Memory:
        engine = self.engine
        found = {
            "a": engine.memory.a,
            "b": engine.memory.b,
            "operands": engine.memory.operands.memory,
            "squares": engine.squares,
            "directions": engine.directions,
            "scalars": engine.memory.scalars.view(-1, len(SCALARS)),
        }
        for index, call in enumerate(self.calls):
            found[f"param {index}"] = call.param.detach()
            for name in STATE:
                found[f"{name} {index}"] = call.state[name]
            for mode, (k, q) in enumerate(zip(call.state["GG"], call.state["Q"], strict=True)):
                if k is not None:
                    found[f"K{mode} {index}"], found[f"Q{mode} {index}"] = k, q
        return {name: tensor.cpu().clone() for name, tensor in found.items()}

    # Parts of that memory by tensor, in float64 --------------------------------------------------

    def plane(self, memory: Memory, index: int, which: str, number: int) -> torch.Tensor:
        """[F, P] of the plane 'a' or 'b', after `number` products."""
        layout, member = self.layouts[index], self.members[index]
        sizes = [group.size for group in layout.products]
        last = sizes[-1 - number % len(sizes)] if sizes else layout.inner
        pitch = -(-last // 4) * 4
        own = self.engine.memory
        address, start = (member.a, own.a) if which == "a" else (member.b, own.b)
        first = (address - start.data_ptr()) // 4
        elements = layout.numel // last * pitch
        return memory[which][first : first + elements].double().view(layout.fold, -1)

    def operand(self, memory: Memory, index: int, group, *, back: bool) -> torch.Tensor:
        """[rows, length] with its padding: what products read of a group's basis."""
        layout, member = self.layouts[index], self.members[index]
        folded = group is layout.folded
        rows = layout.fold_block if folded else group.size
        length = layout.fold_block if folded else -(-group.size // 4) * 4
        address = (member.backward if back else member.forward)[group]
        first = (address - self.engine.memory.operands.memory.data_ptr()) // 4
        if 0 <= first < memory["operands"].numel():
            return memory["operands"][first : first + rows * length].double().view(rows, length)
        assert address == self.calls[index].state["Q"][group.modes[0]].data_ptr()
        return memory[f"Q{group.modes[0]} {index}"].double()

    def basis(self, memory: Memory, index: int, group, *, back: bool) -> torch.Tensor:  # [d, d]
        layout = self.layouts[index]
        if layout.pair and group is layout.folded:
            parts = (self.basis(memory, index, g, back=back) for g in layout.operands[0])
            return torch.kron(*parts)
        return self.operand(memory, index, group, back=back)[: group.size, : group.size]

    def partials(self, memory: Memory, index: int) -> torch.Tensor:
        """[tiles, sums]: what gather leaves of the folded modes' Gram matrices."""
        sums = self.layouts[index].fold_sums
        first = (self.members[index].partials - self.engine.memory.b.data_ptr()) // 4
        elements = self.row(index, "squares") * sums
        return memory["b"][first : first + elements].double().view(-1, sums)

    def fold_grams(self, memory: Memory, index: int) -> dict[int, torch.Tensor]:
        """By folded mode its part of each tile [tiles, d, d]: lower triangle and its mirror."""
        layout, parts = self.layouts[index], self.partials(memory, index)
        found = {}
        if layout.pair:
            d = layout.fold_sizes[0]
            rows, columns = torch.tril_indices(d, d)
            for place, mode in enumerate(layout.folded.modes):
                matrix = parts.new_zeros(len(parts), d, d)
                sums = parts[:, place * len(rows) : (place + 1) * len(rows)]
                matrix[:, rows, columns] = matrix[:, columns, rows] = sums
                found[mode] = matrix
            assert (parts[:, d * (d + 1) :] == 0).all()
            return found
        joint = parts.view(-1, layout.fold_block, layout.fold_block)
        joint = joint[:, : layout.fold, : layout.fold]
        joint = joint.tril() + joint.tril(-1).mT
        for mode in layout.folded.modes:
            zero = parts.new_zeros(layout.plan.modes[mode], layout.plan.modes[mode])
            each = [fold_gram.fold_gram(one, zero, 0.0, layout, mode) for one in joint]
            found[mode] = torch.stack(each)
        return found

    def sums(self, memory: Memory, index: int, name: str) -> torch.Tensor:
        """A tensor's shares of 'squares' or 'directions'."""
        first = self.row(index, f"first_{name[:-1]}")
        return memory[name][first : first + self.row(index, name)].double()

    def row(self, index: int, column: str) -> int:
        return int(self.engine.tensors.view(-1, len(TENSOR))[index, TENSOR[column]])

    def scalar(self, memory: Memory, index: int, name: str) -> torch.Tensor:
        return memory["scalars"][index, SCALARS[name]].double()
