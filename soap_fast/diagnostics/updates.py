"""The cosine between consecutive updates, followed along a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import torch

from soap_fast.diagnostics.scores import Scores, named_parameters, score_of_grams, to_host
from soap_fast.step.call import state_dtype

NEEDED = 3  # calls in a row that a score is made of: two differences


class InterStepScore:
    """How far each update of an optimizer agrees with the one before.

    With Δ_t = p_t - p_{t-1}, weight decay included,

        score = Δ_{t-1} · Δ_t / (|Δ_{t-1}| |Δ_t|),

    for any optimizer, as only its parameters are looked at. Call `update` after every step:

        scores = InterStepScore(optimizer, every=100)
        for batch in loader:
            ...
            optimizer.step()
            scores.update()
        scores.score()

    Only the last three of every `every` calls do anything: copy the parameters, take differences,
    and once their dot products. `update` does not wait for the device, `score` does. Memory is one
    copy of the parameters and one update in `dtype`, held within those three calls where `every`
    is above 3, else all the time.

    Where that is too much, `device="cpu"`, or `entries`: looks at so many entries of each larger
    tensor, drawn once and with replacement by a generator of its own. Dot products are then
    weighted by how many entries one stands for, and `standard_error` tells how far off the overall
    score may be; for n entries that matter alike it is about (1 - score²) / sqrt(n).

    Under `DistributedDataParallel` parameters are equal in all processes, and so is the score.

    Args:
        optimizer: before or after its first step.
        every: calls of `update` from one score to the next.
        entries: looked at per tensor; None for all.
        device: where copies are kept; None for each parameter's own. Elsewhere, copying may wait.
        dtype: of the kept update, e.g. torch.bfloat16, by whose rounding the score is off; None for
            float32 (float64 for float64 parameters).
        seed: of the places of the entries.

    Raises:
        ValueError: `every` or `entries` below 1.

    Source: arXiv 2502.00604, the alignment score of two steps; arXiv 2601.20769 applies it. The
    standard error is that of a ratio of sums by linearisation (delta method).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 1,
        entries: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} is below 1")
        if entries is not None and entries < 1:
            raise ValueError(f"entries={entries} is below 1; None looks at all")
        self._optimizer = optimizer
        self._every, self._entries, self._device, self._dtype = every, entries, device, dtype
        self._generator = torch.Generator().manual_seed(seed)
        self._calls = 0
        self._followed: dict[str, _Followed] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Look at the parameters after a step; to be called after every one."""
        self._calls += 1
        left = -self._calls % self._every  # calls until the next score
        if left >= NEEDED:
            return
        seen: set[int] = set()  # a tied weight may stand twice
        for name, param in zip(*named_parameters(self._optimizer), strict=True):
            if id(param) in seen:
                continue
            seen.add(id(param))
            if name not in self._followed:
                self._followed[name] = self._follow(param)
            tensor = self._followed[name]
            tensor.advance(param, self._device, self._dtype, compare=left == 0)
            if left == 0 and self._every > NEEDED:
                tensor.values = tensor.delta = None

    def score(self) -> Scores:
        """The last score there is; waits for the device.

        Raises:
            RuntimeError: there is none yet.
        """
        present = {n: t for n, t in self._followed.items() if t.sums is not None}
        if not present:
            first = -(-NEEDED // self._every) * self._every
            raise RuntimeError(f"no score before call {first} of update, there were {self._calls}")
        read = to_host([t.sums for t in present.values() if t.sums is not None])
        sums = dict(zip(present, read, strict=True))
        grams = {n: _gram(rows[0], present[n].weight) for n, rows in sums.items()}
        found = score_of_grams(grams, {}, ("earlier update", "later update"))
        total = [sum(grams[n][i][i] for n in found.per_tensor) for i in range(2)]
        variance = 0.0
        for name in found.per_tensor:
            places, weight = present[name].places, present[name].weight
            if places is not None:
                m = places.numel()
                variance += _variance(sums[name], weight, m, found.overall, total)
        return replace(found, standard_error=sqrt(variance))

    def _follow(self, param: torch.Tensor) -> _Followed:
        numel, entries = param.numel(), self._entries
        if entries is None or numel <= entries:
            return _Followed(None, 1.0)
        places = torch.randint(numel, (entries,), generator=self._generator, device="cpu")
        return _Followed(places.to(param.device), numel / entries)


@dataclass
class _Followed:
    """What is remembered of one tensor, of the m entries that are looked at.

    Attributes:
        places: [m] int64 where they stand, or None for all.
        weight: entries of the tensor for each of them.
        values: [m] of the parameter after the last step.
        delta: [m] the last update.
        sums: [4, 3] float64: sums of (a², ab, b²), a and b the last two updates, and below them the
            sums of products of these three with each other.
    """

    places: torch.Tensor | None
    weight: float
    values: torch.Tensor | None = None
    delta: torch.Tensor | None = None
    sums: torch.Tensor | None = None

    def advance(
        self,
        param: torch.Tensor,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        compare: bool,
    ) -> None:
        flat = param.detach().flatten()
        now = flat if self.places is None else flat[self.places]
        now = now.to(state_dtype(param))
        if self.values is not None:
            delta = now - self.values.to(now.device)
            if compare and self.delta is not None:
                self.sums = self._sums(self.delta.to(now.device).double(), delta.double())
            self.delta = delta.to(device, dtype)
        self.values = now.to(device, copy=True)  # `now` may be the parameter's own memory

    def _sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.places is None:
            first = torch.stack([a.dot(a), a.dot(b), b.dot(b)])
            return torch.cat([first[None], first.new_zeros(3, 3)])
        products = torch.stack([a * a, a * b, b * b])  # [3, m]
        return torch.cat([products.sum(1)[None], products @ products.T])


def _gram(sums: list[float], weight: float) -> list[list[float]]:
    aa, ab, bb = (weight * value for value in sums)
    return [[aa, ab], [ab, bb]]


def _variance(
    sums: list[list[float]], weight: float, m: int, score: float, total: list[float]
) -> float:
    """What the m entries sampled of a tensor add to the variance of the overall score c.

    With c = Σ w ab / sqrt(Σ w a² Σ w b²) each of them moves c by
    e = w (ab / (|A| |B|) - c/2 (a² / |A|² + b² / |B|²)), and the variance is Σ e² - (Σ e)² / m.
    """
    first, *second = sums
    share = -0.5 * score * weight
    moves = (share / total[0], weight / sqrt(total[0] * total[1]), share / total[1])
    mean = sum(move * value for move, value in zip(moves, first, strict=True))
    square = sum(moves[i] * moves[j] * second[i][j] for i in range(3) for j in range(3))
    return max(0.0, square - mean**2 / m)
