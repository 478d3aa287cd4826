"""W8A8 of a trained model, after training: ranges and roundings from images, and a model with them.

`calibrated` looks at what each layer reads on calibration images; `quantized` is the model with
8-bit weights and activations while a block of code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.files import BadInput
from bench.lic.data import EvaluationSet
from bench.lic.evaluation.int8 import (
    ITERATIONS,
    LAYERS,
    Grid,
    Layer,
    adaround,
    as_weight,
    grid,
    nearest,
    on_grid,
    patches,
    weight_rows,
    weight_scale,
)
from bench.lic.training import say

ROUNDINGS = ("nearest", "adaround")
RANGES = ("min-max", "percentile")
# Of our models and CompressAI's; all other layers belong to networks of the entropy model.
TRANSFORMS = ("analysis", "synthesis", "net.g_a", "net.g_s")
BINS = 4096  # of a histogram between an activation's extremes: 16 to a step of its 8 bits
APART = 4  # of so many calibration images one decides between the roundings
PIXELS = 2**16  # of each layer's output that are looked at, on all images together
GRAMS = 2**28  # numbers of Gram matrices in memory at a time: 1 GiB of float32


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised.

    Attributes:
        percentile: per cent of an activation's values within its range by percentile; half of the
            others lie beyond each end.
        iterations: of AdaRound, for each layer.
        entropy_networks: quantise the layers of the entropy model's networks too.
    """

    percentile: float = 99.99
    iterations: int = ITERATIONS
    entropy_networks: bool = False


@dataclass
class QuantizedLayer:
    """Integers of one layer, and what rounding costs it.

    Attributes:
        grids: of what it reads, by RANGES.
        scale: of each channel of its weight  # [groups, R, 1].
        integers: of its weight, by ROUNDINGS  # int8 [groups, R, K], as `weight_rows` has it.
        errors: by ROUNDINGS, |(w~ - w) X|² / |w X|² over the images kept apart.
        kept_nearest: AdaRound was not better there, and has the weights of nearest.
    """

    name: str
    kind: str
    grids: dict[str, Grid]
    scale: Tensor
    integers: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    kept_nearest: bool = False


@dataclass(frozen=True)
class Quantization:
    """All layers of a model, in the order in which they first run, and those that stay float."""

    layers: list[QuantizedLayer]
    never_run: list[str]
    entropy_networks: bool

    @property
    def kept_nearest(self) -> int:
        """Layers in which AdaRound is not better than rounding to nearest."""
        return sum(layer.kept_nearest for layer in self.layers)

    @property
    def error_ratio(self) -> float:
        """Mean over layers of AdaRound's output error over that of rounding to nearest."""
        ratios = [_ratio(layer.errors) for layer in self.layers]
        return math.fsum(ratios) / len(ratios)


def crops(images: EvaluationSet, stride: int, side: int, count: int) -> list[Tensor]:
    """The middles of the first `count` images that are large enough  # float32 [1, 3, h, w] each.

    Sides are the largest multiples of the stride within the image and `side`. A smaller image is
    skipped, and named.

    Raises:
        BadInput: fewer than two images are left, or no multiple of the stride is within `side`.
    """
    if side < stride:
        raise BadInput(f"--crop {side} is smaller than {stride}, the model's stride; take {stride}")
    found: list[Tensor] = []
    for name, pixels in images.images:
        height, width = (min(side, length) // stride * stride for length in pixels.shape[1:])
        if not height or not width:
            small = "x".join(map(str, pixels.shape[1:]))
            say(f"skipped {name} ({small} pixels, smaller than the model's stride {stride})")
            continue
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        found.append(pixels[None, :, top : top + height, left : left + width].float() / 255)
        if len(found) == count:
            break
    if len(found) < 2:
        raise BadInput(
            f"--calibration: {len(found)} usable images in {images.name}; it takes two of at least "
            f"{stride}x{stride} pixels, one to calibrate and one to choose roundings"
        )
    return found


@torch.no_grad()
def calibrated(model: nn.Module, images: Sequence[Tensor], recipe: Recipe) -> Quantization:
    """Ranges and roundings for the model's layers; the model stays as it is.

    Each layer by itself: its inputs are those of the float model. The last quarter of the images,
    one at least, is kept apart: there a layer whose AdaRound is no better keeps rounding to
    nearest. No random number is drawn.

    Args:
        model: in evaluation mode, on its device.
        images: two at least, float32 [1, 3, h, w] in [0, 1], of sides that fit.

    Raises:
        BadInput: no layer can be quantised, or one reads values that are not finite.
    """
    device = next(model.parameters()).device
    images = [image.to(device) for image in images]
    apart = max(1, len(images) // APART)
    seen, judged = images[:-apart], images[-apart:]
    chosen = _chosen(model, recipe.entropy_networks)
    ranges = _ranges(model, chosen, seen, recipe.percentile)
    layers = {name: chosen[name] for name in ranges}  # in the order of their first runs
    if not layers:
        raise BadInput("none of the model's layers that can be quantised runs in evaluation")
    found = [
        QuantizedLayer(
            name,
            type(layer).__name__,
            {kind: grid(*of_it) for kind, of_it in ranges[name].items()},
            weight_scale(weight_rows(layer)),
        )
        for name, layer in layers.items()
    ]
    _round(model, layers, found, seen, recipe.iterations)
    _choose(model, layers, found, judged)
    return Quantization(found, [n for n in chosen if n not in layers], recipe.entropy_networks)


@contextmanager
def quantized(
    model: nn.Module, quantization: Quantization, rounding: str, ranges: str
) -> Iterator[None]:
    """Within the block the model has these weights and reads 8-bit activations."""
    layers: dict[str, Layer] = {name: m for name, m in model.named_modules() if _fits(m)}
    before = {one.name: layers[one.name].weight.detach().clone() for one in quantization.layers}
    hooks = []
    try:
        for one in quantization.layers:
            layer = layers[one.name]
            layer.weight.data.copy_(as_weight(one.integers[rounding] * one.scale, layer))
            hooks.append(layer.register_forward_pre_hook(_reading(one.grids[ranges])))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in before.items():
            layers[name].weight.data.copy_(weight)


def _reading(levels: Grid) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda layer, given: (on_grid(given[0], levels), *given[1:])


def _fits(module: nn.Module) -> bool:
    return isinstance(module, LAYERS)


def _chosen(model: nn.Module, entropy_networks: bool) -> dict[str, Layer]:
    """Layers to quantise, by their names."""
    layers = {name: module for name, module in model.named_modules() if _fits(module)}
    if not layers:
        raise BadInput("the model has no Conv2d, ConvTranspose2d or Linear layer to quantise")
    if entropy_networks:
        return layers
    chosen = {name: layer for name, layer in layers.items() if name.startswith(TRANSFORMS)}
    if not chosen:
        raise BadInput(
            f"none of the model's {len(layers)} layers is in a transform "
            f"({', '.join(TRANSFORMS)}); --entropy-networks quantises all of them"
        )
    return chosen


def _watch(
    model: nn.Module,
    layers: dict[str, Layer],
    images: Sequence[Tensor],
    look: Callable[[str, Tensor], None],
) -> None:
    """Run the model on the images; `look` is given what each layer reads at each of its calls."""

    def watching(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, given: look(name, given[0])

    hooks = [layer.register_forward_pre_hook(watching(name)) for name, layer in layers.items()]
    try:
        for image in images:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()


# Ranges


def _ranges(
    model: nn.Module, layers: dict[str, Layer], images: Sequence[Tensor], percentile: float
) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each layer that runs, by RANGES."""
    extremes: dict[str, Tensor] = {}  # [low, high]
    counts: dict[str, Tensor] = {}  # [BINS]

    def widen(name: str, x: Tensor) -> None:
        low, high = x.aminmax()
        if name in extremes:
            low, high = (
                torch.minimum(low, extremes[name][0]),
                torch.maximum(high, extremes[name][1]),
            )
        extremes[name] = torch.stack([low, high])

    _watch(model, layers, images, widen)
    found = {name: (float(low), float(high)) for name, (low, high) in extremes.items()}
    for name, (low, high) in found.items():
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BadInput(f"the model's layer {name} reads values that are not finite")

    def count(name: str, x: Tensor) -> None:
        new = torch.histc(x.float(), BINS, *found[name]).double()
        counts[name] = counts[name] + new if name in counts else new

    _watch(model, layers, images, count)
    return {
        name: dict(zip(RANGES, (pair, _inner(*pair, counts[name], percentile)), strict=True))
        for name, pair in found.items()
    }


def _inner(low: float, high: float, counts: Tensor, percentile: float) -> tuple[float, float]:
    """The range that holds so many per cent of the values counted, in bins from low to high."""
    beyond = (1 - percentile / 100) / 2
    below = (counts.cumsum(0) / counts.sum()).cpu()  # share of the values up to each bin's end
    step = (high - low) / len(counts)
    first = int((below <= beyond).sum())  # bins with nothing but what is beyond
    last = int((below < 1 - beyond).sum())
    return low + first * step, low + (last + 1) * step


# Roundings


def _round(
    model: nn.Module,
    layers: dict[str, Layer],
    found: list[QuantizedLayer],
    images: Sequence[Tensor],
    iterations: int,
) -> None:
    """Integers of the weights by both roundings, layer by layer."""
    with tqdm(total=len(found), desc="AdaRound", unit="layer", leave=False, disable=None) as bar:
        for part in _parts(layers):
            grams = _grams(model, part, images)
            for one in found:
                if one.name in part:
                    rows, gram = weight_rows(layers[one.name]), grams.pop(one.name)
                    one.integers["nearest"] = nearest(rows, one.scale)
                    one.integers["adaround"] = adaround(rows, one.scale, gram, iterations)
                    bar.update()


def _grams(
    model: nn.Module, layers: dict[str, Layer], images: Sequence[Tensor]
) -> dict[str, Tensor]:
    """X Xᵀ of the patches X that each layer reads  # [groups, K, K]."""
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        for columns in patches(layers[name], x, PIXELS // len(images)):
            product = columns @ columns.mT
            grams[name] = grams[name].add_(product) if name in grams else product

    _watch(model, layers, images, add)
    return grams


def _parts(layers: dict[str, Layer]) -> Iterator[dict[str, Layer]]:
    """Layers in parts whose Gram matrices fit into memory together."""
    part: dict[str, Layer] = {}
    size = 0
    for name, layer in layers.items():
        groups, _, width = weight_rows(layer).shape
        if part and size + groups * width**2 > GRAMS:
            yield part
            part, size = {}, 0
        part[name] = layer
        size += groups * width**2
    yield part


def _choose(
    model: nn.Module,
    layers: dict[str, Layer],
    found: list[QuantizedLayer],
    images: Sequence[Tensor],
) -> None:
    """Errors on images kept apart; AdaRound's integers only where they are better there."""
    sums = {one.name: torch.zeros(3, dtype=torch.float64) for one in found}
    stacked = {}
    for one in found:
        rows = weight_rows(layers[one.name])
        off = [one.integers[rounding] * one.scale - rows for rounding in ROUNDINGS]
        stacked[one.name] = torch.stack([*off, rows], 1)  # [groups, 3, R, K]

    def add(name: str, x: Tensor) -> None:
        for columns in patches(layers[name], x, PIXELS // len(images)):
            outputs = stacked[name] @ columns[:, None]  # [groups, 3, R, n]
            sums[name] += outputs.square().sum((0, 2, 3), dtype=torch.float64).cpu()

    _watch(model, layers, images, add)
    for one in found:
        *errors, whole = sums[one.name].tolist()
        one.errors = {
            r: e / whole if whole else 0.0 for r, e in zip(ROUNDINGS, errors, strict=True)
        }
        one.kept_nearest = one.errors["adaround"] >= one.errors["nearest"]
        if one.kept_nearest:
            one.integers["adaround"] = one.integers["nearest"]
            one.errors["adaround"] = one.errors["nearest"]


def _ratio(errors: dict[str, float]) -> float:
    return errors["adaround"] / errors["nearest"] if errors["nearest"] else 1.0
