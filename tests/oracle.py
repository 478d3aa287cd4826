"""An independent SOAP, one tensor at a time, written from the published description alone.

It shares no code with the package, keeps everything in one dtype (float64 in most tests), works
with `einsum` instead of the package's contractions, and carries exp_avg back and forth on every
call, as the reference does. No fault handling: a second opinion on what a healthy step computes.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass, field

import torch


@dataclass
class TensorState:
    step: int
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    GG: list[torch.Tensor | None] = field(default_factory=list)
    Q: list[torch.Tensor | None] = field(default_factory=list)


class OracleSOAP:
    """`step(grads)` for a list of tensors `params`, which it replaces; `states` per tensor."""

    def __init__(
        self,
        params,
        lr=3e-3,
        betas=(0.95, 0.95),
        shampoo_beta=-1,
        eps=1e-8,
        weight_decay=0.01,
        precondition_frequency=10,
        max_precond_dim=10000,
        merge_dims=False,
        precondition_1d=False,
        normalize_grads=False,
        data_format="channels_first",
        correct_bias=True,
    ):
        self.params = [p.detach().clone() for p in params]
        self.states: list[TensorState | None] = [None] * len(self.params)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.beta_s = shampoo_beta if shampoo_beta >= 0 else betas[1]
        self.frequency = precondition_frequency
        self.max_dim, self.merging, self.vectors = max_precond_dim, merge_dims, precondition_1d
        self.normalize, self.nhwc = normalize_grads, data_format == "channels_last"
        self.correct_bias = correct_bias

    def step(self, grads):
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if self.states[i] is None:
                self.states[i] = self._first(grad)
            else:
                self.params[i] = self._later(self.params[i], grad, self.states[i])

    def _first(self, grad):
        state = TensorState(0, torch.zeros_like(grad), torch.zeros_like(grad))
        for k in self.grams(grad):
            state.GG.append(None if k is None else (1 - self.beta_s) * k)
            state.Q.append(None if k is None else torch.linalg.eigh(state.GG[-1])[1].flip(1))
        return state

    def _later(self, param, grad, state):
        beta1, beta2 = self.betas
        state.step += 1
        rotated = self.project(grad, state.Q)
        state.exp_avg = beta1 * state.exp_avg + (1 - beta1) * rotated
        state.exp_avg_sq = beta2 * state.exp_avg_sq + (1 - beta2) * rotated**2
        update = self.project(
            state.exp_avg / (state.exp_avg_sq**0.5 + self.eps), state.Q, back=True
        )
        if self.normalize:
            update = update / (1e-30 + (update**2).mean() ** 0.5)
        size = self.lr
        if self.correct_bias:
            size *= math.sqrt(1 - beta2**state.step) / (1 - beta1**state.step)
        param = param - size * update
        param = param - self.lr * self.weight_decay * param

        unrotated = self.project(state.exp_avg, state.Q, back=True)
        for mode, k in enumerate(self.grams(grad)):
            if k is not None:
                state.GG[mode] = self.beta_s * state.GG[mode] + (1 - self.beta_s) * k
        if state.step % self.frequency == 0:
            self._refresh(state)
        state.exp_avg = self.project(unrotated, state.Q)
        return param

    def _refresh(self, state):
        folded = self.fold(state.exp_avg_sq)
        for mode, (k, q) in enumerate(zip(state.GG, state.Q, strict=True)):
            if k is None:
                continue
            eigenvalues = torch.einsum("ji,jk,ki->i", q, k, q)
            order = torch.argsort(-eigenvalues, stable=True)
            folded = folded.index_select(mode, order)
            state.Q[mode] = torch.linalg.qr(k @ q[:, order]).Q
        state.exp_avg_sq = self.unfold(folded, state.exp_avg_sq.shape)

    def project(self, x, bases, back=False):
        """R(x), or with `back` its inverse."""
        folded = self.fold(x)
        axes = string.ascii_lowercase[: folded.dim()]
        for mode, q in enumerate(bases):
            if q is not None:
                out = axes.replace(axes[mode], "z")
                pair = "z" + axes[mode] if back else axes[mode] + "z"
                folded = torch.einsum(f"{axes},{pair}->{out}", folded, q)
        return self.unfold(folded, x.shape)

    def grams(self, grad):
        """g_(i) g_(i)ᵀ per mode, None for a mode without factor."""
        folded = self.fold(grad)
        axes = string.ascii_lowercase[: folded.dim()]
        for mode, size in enumerate(folded.shape):
            if size > self.max_dim or (grad.dim() == 1 and not self.vectors):
                yield None
            else:
                other = axes.replace(axes[mode], "z")
                yield torch.einsum(f"{axes},{other}->{axes[mode]}z", folded, folded)

    def fold(self, x):
        if not self.merging or x.dim() == 1 or x.numel() == 0:
            return x
        if self.nhwc and x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        shape, running = [], 1
        for size in x.shape:
            if running * size > self.max_dim:
                shape.append(running if running > 1 else size)
                running = size if running > 1 else 1
            else:
                running *= size
        if running > 1 or not shape:
            shape.append(running)
        return x.reshape(shape)

    def unfold(self, x, shape):
        if self.merging and self.nhwc and len(shape) == 4:
            n, h, w, c = shape
            return x.reshape(n, c, h, w).permute(0, 2, 3, 1)
        return x.reshape(shape)
