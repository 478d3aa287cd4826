"""One random training run: what happens in it, and what must hold after every event."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import tolerances
import torch
from averages import check_averages
from streams import assert_same_bits, through_a_file
from subjects import assert_orthogonal, tensor_by_tensor

from soap_fast import SOAP
from soap_fast.options import plan_options, step_options
from soap_fast.step.modes import rotate_back
from soap_fast.step.plan import plan_tensor

TERMS = 64  # of them in a row, at most: sums of up to 4^5 elements in blocks, and what follows


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in other memory."""
    if layout == "permuted" and values.ndim > 1:
        order = [*range(1, values.ndim), 0]
        back = [order.index(axis) for axis in range(values.ndim)]
        return values.permute(order).contiguous().permute(back)
    if layout == "sliced" and values.ndim:
        wide = torch.zeros(*values.shape[:-1], 2 * values.shape[-1] + 1, dtype=values.dtype)
        part = wide[..., 1::2]
        return part.copy_(values)
    return values.clone()


@dataclass
class Expected:
    """What the clocks of one tensor must say."""

    calls: int = 0
    skipped: int = 0
    steps: int = 0


@dataclass
class Trial:
    """An optimizer, its parameters, and what it has been through."""

    optimizer: SOAP
    seed: int
    clocks: list[Expected] = field(default_factory=list)
    calls: int = 0

    @property
    def params(self) -> list[torch.nn.Parameter]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def step(self, kinds: list[str], layouts: list[str]) -> None:
        """One step; of each tensor the gradient is `fine`, `nan`, `zero` or `missing`."""
        params = self.params
        self.clocks += [Expected() for _ in params[len(self.clocks) :]]
        self.calls += 1
        for place, param in enumerate(params):
            kind, layout = kinds[place % len(kinds)], layouts[(place + self.calls) % len(layouts)]
            param.grad = None if kind == "missing" else self._gradient(place, kind, layout)
        given = [None if param.grad is None else param.grad.clone() for param in params]
        before = tensor_by_tensor(self.optimizer, params)
        self.optimizer.step()
        after = tensor_by_tensor(self.optimizer, params)
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            self._check(place, kinds[place % len(kinds)], given[place], old, new)
        assert_orthogonal(self.optimizer)

    def _gradient(self, place: int, kind: str, layout: str) -> torch.Tensor:
        param = self.params[place]
        generator = torch.Generator().manual_seed(self.seed + 1000 * place + self.calls)
        if layout == "expanded" and param.ndim and kind == "fine":
            row = torch.randn(1, *param.shape[1:], generator=generator).to(param.dtype)
            return row.expand(param.shape)
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if kind == "zero":
            grad.zero_()
        if kind == "nan" and grad.numel():
            grad.view(-1)[self.calls % grad.numel()] = (math.nan, math.inf)[place % 2]
        return laid_out(grad, layout)

    def _check(
        self, place: int, kind: str, grad: torch.Tensor | None, old: dict, new: dict
    ) -> None:
        param, clock = self.params[place], self.clocks[place]
        if kind == "missing":
            assert_same_bits(new, old)
            return
        first = not clock.calls
        left_out = kind == "nan" and param.numel() > 0
        clock.skipped += left_out
        clock.calls += not (first and left_out)
        clock.steps += not first and not left_out
        assert new["calls"] == clock.calls
        assert int(new["skipped"]) == clock.skipped
        if left_out:
            kept = set(new) - {"calls", "skipped", "phases"}
            assert_same_bits({k: new[k] for k in kept}, {k: old[k] for k in kept & set(old)})
            return
        assert int(new["step"]) == clock.steps
        self._check_whole(param, new)
        refreshed = not first and not torch.equal(new["refreshes"], old["refreshes"])
        check_averages(grad, old, new, self._group(param), refreshed=refreshed)
        if first:
            assert_same_bits(new["value"], old["value"])
        elif not refreshed:
            self._check_value(param, old, new)

    def _check_whole(self, param: torch.Tensor, entry: dict) -> None:
        """Everything finite, of the right dtype, factors symmetric to the bit."""
        wanted = torch.float64 if param.dtype == torch.float64 else torch.float32
        assert entry["value"].isfinite().all()
        for name in ("exp_avg", "exp_avg_sq"):
            assert entry[name].dtype == wanted
            assert entry[name].shape == param.shape
            assert entry[name].isfinite().all()
        assert (entry["exp_avg_sq"] >= 0).all()
        for k, q in zip(entry["GG"], entry["Q"], strict=True):
            if k is not None:
                assert k.dtype == q.dtype == wanted
                assert k.isfinite().all()
                assert torch.equal(k, k.T)
                assert (k.diagonal() >= 0).all()

    def _check_value(self, param: torch.Tensor, old: dict, new: dict) -> None:
        """p - a R⁻¹(m / (sqrt(v) + eps)), decayed, in float64 from the moments the step has left.

        So nothing is compared that rounding may amplify, and bases may be any.
        """
        group = self._group(param)
        options, plan = step_options(group), plan_tensor(tuple(param.shape), plan_options(group))
        m, v = new["exp_avg"].double(), new["exp_avg_sq"].double()
        n = torch.where(v.sqrt() + options.eps == 0, 0, m / (v.sqrt() + options.eps))
        bases = [None if q is None else q.double() for q in old["Q"]]
        u = rotate_back(n, bases, plan)
        if options.normalize_grads and param.numel():
            u = u / (1e-30 + u.square().mean().sqrt())
        lr, t = float(options.lr), self.clocks[self._place(param)].steps
        size = lr
        if options.correct_bias:
            size = lr * (1 - options.beta2**t) ** 0.5 / (1 - options.beta1**t)
        start = old["value"].double()
        expected = (start - size * u) * (1 - lr * options.weight_decay)
        if not param.numel():
            return
        unit = 2**-53 if param.dtype == torch.float64 else tolerances.U
        largest = max(float(start.abs().max()), size * float(n.norm()))
        # Triton's interpreter rounds bfloat16 towards zero: a whole unit, not half of one.
        rounding = torch.finfo(param.dtype).eps * expected.abs() + torch.finfo(param.dtype).tiny
        error = (new["value"].double() - expected).abs()
        assert (error <= TERMS * unit * largest + rounding).all(), (param.shape, error.max())

    def _group(self, param: torch.Tensor) -> dict:
        return next(g for g in self.optimizer.param_groups if any(p is param for p in g["params"]))

    def _place(self, param: torch.Tensor) -> int:
        return next(place for place, one in enumerate(self.params) if one is param)

    # What else happens in a training run ------------------------------------------------------

    def moved(self) -> None:
        """The storage of every parameter is replaced."""
        for param in self.params:
            param.data = param.data.clone(memory_format=torch.preserve_format)

    def saved_and_loaded(self, backend: str) -> None:
        """Into a new optimizer of the same parameters, by way of a file."""
        old, groups = self.optimizer, self.optimizer.param_groups
        options = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        fresh = [
            {**one, "params": group["params"]} for one, group in zip(options, groups, strict=True)
        ]
        self.optimizer = SOAP(fresh, backend=backend)
        self.optimizer.load_state_dict(through_a_file(old.state_dict()))
        assert_same_bits(self.optimizer.state_dict(), old.state_dict())

    def copied(self) -> None:
        """It goes on as a copy of itself, on copies of the parameters."""
        twin = copy.deepcopy(self.optimizer)
        assert_same_bits(twin.state_dict(), self.optimizer.state_dict())
        self.optimizer = twin

    def rate(self, lr: float, as_tensor: bool) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(lr) if as_tensor else lr
