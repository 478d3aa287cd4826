"""Outliers in activations and latents: kurtosis, max over rms, the share beyond six sigma."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from soap_fast.diagnostics.scores import to_host

SIGMAS = 6


@dataclass(frozen=True)
class Outliers:
    """How far values have outliers.

    Attributes:
        count: values seen.
        kurtosis: E[(x - mean)⁴] / E[(x - mean)²]²: 3 of a normal distribution, 6 of Laplace's, 1.8
            of a uniform one; NaN of a constant and where a value is not finite.
        max_over_rms: max |x| / sqrt(E[x²]), not centred; NaN of zeros.
        beyond_6_sigma: share of values with |x - mean| > 6 sigma; mean and sigma are those of the
            call that a value came with. 2e-9 of a normal distribution.
    """

    count: int
    kurtosis: float
    max_over_rms: float
    beyond_6_sigma: float


def outliers(values: torch.Tensor) -> Outliers:
    """Those of one tensor, of any shape and real dtype; waits for its device.

    Raises:
        ValueError: no values, or complex ones.
    """
    if values.numel() == 0 or values.is_complex():
        raise ValueError(f"outliers of {list(values.shape)} {values.dtype}: give real values")
    return _read([_moments(values)])[0]


def kurtosis(values: torch.Tensor) -> float:
    """E[(x - mean)⁴] / E[(x - mean)²]² of one tensor; see `outliers`."""
    return outliers(values).kurtosis


class ActivationStatistics:
    """Outliers in what layers put out, by forward hooks, accumulated on the device.

        with ActivationStatistics(model, layers=["g_a", "h_a"]) as statistics:
            for images in loader:
                model(images)
        statistics.summary()

    Within the context every named layer's output is looked at after each of its calls: about
    twenty passes over it, and for the while two or three copies of it in float32. Outside there
    are no hooks and no cost. Nothing waits for the device until `summary` is asked, and outputs
    stay as they are. Central moments of each call are merged in float64 with those before (Pébay,
    SAND2008-6212), so that a large mean does no harm. Contexts may be entered again and go on.

    Under autocast outputs have the dtype that the model gives them. In a forward pass that
    activation checkpointing repeats within the context, outputs count twice.

    Args:
        model: any module.
        layers: names as in `model.named_modules()`; a layer's output is a tensor, or tuples, lists
            and dicts of them. A latent is the output of the part that makes it. None: all modules
            that have no children.

    Raises:
        ValueError: a model without layers, or a name that it does not have.

    Source: kurtosis and max over rms as arXiv 2601.20769 looks at them in activations and latents.
    """

    def __init__(self, model: torch.nn.Module, layers: Iterable[str] | None = None) -> None:
        self._layers = _chosen(model, layers)
        self._moments: dict[str, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ActivationStatistics:
        if self._handles:
            raise RuntimeError("these statistics are being taken already")
        self._handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def summary(self, process_group: dist.ProcessGroup | None = None) -> dict[str, Outliers]:
        """What was seen so far, by the layer's name; `name[0]`, `name['key']` of several outputs.

        Layers that did not run, or put out no floating point tensor, are not there.

        Args:
            process_group: of all its processes together, each of which must call this, with the
                same layers.

        Raises:
            RuntimeError: no layer has run.
        """
        if not self._moments and process_group is None:
            raise RuntimeError("no layer has run: call the model within the context")
        moments = dict(self._moments)
        if process_group is not None:
            moments = _of_all_processes(moments, process_group)
        return dict(zip(moments, _read(list(moments.values())), strict=True))

    def reset(self) -> None:
        """Forget what was seen."""
        self._moments.clear()

    def _hook(self, name: str) -> Any:
        def look(module: torch.nn.Module, args: object, output: object) -> None:
            for place, tensor in _tensors(output, name):
                new, old = _moments(tensor), self._moments.get(place)
                self._moments[place] = new if old is None else _merged(old.to(new.device), new)

        return look


def _chosen(model: torch.nn.Module, layers: Iterable[str] | None) -> dict[str, torch.nn.Module]:
    modules = {name: module for name, module in model.named_modules() if name}
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no layers, only itself: put it into a "
            "torch.nn.Sequential, or give its outputs to `outliers`"
        )
    if layers is None:
        return {n: m for n, m in modules.items() if next(m.children(), None) is None}
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r} is one name: give a list of names")
    names = list(layers)
    if not names:
        raise ValueError("layers is empty: None takes all")
    for name in names:
        if name not in modules:
            near = get_close_matches(name, modules, n=3) or list(modules)[:3]
            raise ValueError(f"the model has no layer {name!r}; it has, e.g., {', '.join(near)}")
    return {name: modules[name] for name in names}


def _tensors(output: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Floating point tensors in an output, with what to call them."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() and output.numel():
            yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{name}[{key!r}]")
    elif isinstance(output, tuple | list):
        for place, value in enumerate(output):
            yield from _tensors(value, f"{name}[{place}]")


# Moments are one tensor [7] float64: count, mean, M2, M3, M4 (sums of powers of x - mean), max |x|,
# count beyond six sigma.


@torch.no_grad()
def _moments(values: torch.Tensor) -> torch.Tensor:  # [7]
    """Of one tensor: its entries in float32 unless they are float64, what follows in float64.

    Deviations are scaled by the largest, so that no power of them over- or underflows, and taken
    from a mean as rounded; what they show it to be off by is corrected.
    """
    x = values.detach().flatten()
    x = x if x.dtype == torch.float64 else x.float()
    centre, (low, high) = x.mean(), x.aminmax()
    scale = torch.maximum(high - centre, centre - low).clamp(min=torch.finfo(x.dtype).tiny)
    off = (x - centre).div_(scale)  # [n] in [-1, 1]
    sums = [off.sum()]
    square = off.square()
    sums += [square.sum(), off.mul_(square).sum()]  # in its place: off³
    sums.append(torch.mul(square, square, out=off).sum())
    powers = torch.stack(sums).double()
    count = powers.new_tensor(x.numel())
    beyond = (square > (SIGMAS**2 * powers[1] / count).to(x.dtype)).to(x.dtype).sum()

    rest, p2, p3, p4 = powers[0] / count, *powers[1:].unbind()
    m2 = p2 - count * rest**2
    m3 = p3 - 3 * rest * p2 + 2 * count * rest**3
    m4 = p4 - 4 * rest * p3 + 6 * rest**2 * p2 - 3 * count * rest**4
    scale = scale.double()
    central = (m2 * scale**2, m3 * scale**3, m4 * scale**4)
    mean, largest = centre.double() + rest * scale, torch.maximum(-low, high)
    return torch.stack([count, mean, *central, largest.double(), beyond.double()])


def _merged(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [7] of both
    n_a, mean_a, m2_a, m3_a, m4_a, max_a, beyond_a = a.unbind()
    n_b, mean_b, m2_b, m3_b, m4_b, max_b, beyond_b = b.unbind()
    n, delta = n_a + n_b, mean_b - mean_a
    step = delta / n
    m2 = m2_a + m2_b + n_a * n_b * delta * step
    m3 = m3_a + m3_b + n_a * n_b * (n_a - n_b) * delta * step**2
    m3 = m3 + 3 * step * (n_a * m2_b - n_b * m2_a)
    m4 = m4_a + m4_b + n_a * n_b * (n_a**2 - n_a * n_b + n_b**2) * delta * step**3
    m4 = m4 + 6 * step**2 * (n_a**2 * m2_b + n_b**2 * m2_a)
    m4 = m4 + 4 * step * (n_a * m3_b - n_b * m3_a)
    largest, beyond = torch.maximum(max_a, max_b), beyond_a + beyond_b
    return torch.stack([n, mean_a + n_b * step, m2, m3, m4, largest, beyond])


def _of_all_processes(
    moments: Mapping[str, torch.Tensor], group: dist.ProcessGroup
) -> dict[str, torch.Tensor]:
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, {n: m.cpu() for n, m in moments.items()}, group=group)
    merged: dict[str, torch.Tensor] = {}
    for one in gathered:
        for name, new in one.items():
            merged[name] = _merged(merged[name], new) if name in merged else new
    return merged


def _read(moments: list[torch.Tensor]) -> list[Outliers]:
    return [_outliers(*values) for values in to_host(moments)]


def _outliers(
    count: float, mean: float, m2: float, m3: float, m4: float, largest: float, beyond: float
) -> Outliers:
    rms = (m2 / count + mean**2) ** 0.5
    return Outliers(
        int(count),
        m4 / m2 / m2 * count if m2 > 0 else float("nan"),
        largest / rms if rms else float("nan"),
        beyond / count,
    )
