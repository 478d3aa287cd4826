"""Bits per pixel and PSNR of whole images, of all runs on all data sets."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.files import BadInput
from bench.lic.data import EvaluationSet, reason_of
from bench.lic.evaluation.coding import decode, encode
from bench.lic.evaluation.curves import Curves, Shown, points
from bench.lic.evaluation.runs import Group, Run
from bench.lic.models import Model
from bench.lic.models.model import psnr
from bench.lic.training import load_model, say

PADDING = (
    "An image whose sides are no multiples of the model's stride is continued by its last row and "
    "column; the bits of what was added count, its pixels do not, and PSNR is of the image alone."
)


class Score(NamedTuple):
    """Of one image."""

    image: str
    height: int
    width: int
    bpp: float  # the model's estimate, padding's bits included, over the image's own pixels
    psnr: float  # dB, of the decoded image clamped to [0, 1], not rounded to 8 bits
    coded_bpp: float | None = None  # of the bytes of a range coder, where they were asked for


class SetScore(NamedTuple):
    """Means over a data set's images, each image counting alike."""

    bpp: float
    psnr: float
    coded_bpp: float | None  # None unless all images were coded
    images: list[Score]


@torch.no_grad()
def measure(
    model: nn.Module, pixels: Tensor, name: str = "", coded: bool = False
) -> tuple[Score, Tensor]:
    """Code and decode one image by a model in evaluation mode, on the model's device.

    Args:
        pixels: uint8 [3, height, width], any size.
        coded: write the bytes of a range coder too, and read them again.

    Returns:
        The score, and the decoded image  # float32 [3, height, width] in [0, 1], on the CPU.
    """
    device = next(model.parameters()).device
    image = pixels[None].to(device).float() / 255  # [1, 3, H, W]
    height, width = image.shape[2:]
    larger = padded(image, cast(int, model.stride))
    compressed = model(larger)
    decoded = compressed.images[:, :, :height, :width].clamp(0, 1)
    bits = -sum(p.double().log2().sum().item() for p in compressed.likelihoods)
    mse = (decoded.double() - image.double()).square().mean().item()
    count = _bytes(model, larger, name) if coded else None
    coded_bpp = None if count is None else 8 * count / (height * width)
    score = Score(name, height, width, bits / (height * width), psnr(mse), coded_bpp)
    return score, decoded[0].cpu()


def _bytes(model: nn.Module, image: Tensor, name: str) -> int | None:
    """How many a range coder writes for the image  # [1, 3, H, W]; None if it cannot, and why.

    Raises:
        BadInput: the model is not one of ours, or constriction is missing.
        RuntimeError: what is decoded again is not what was coded.
    """
    if not isinstance(model, Model):
        raise BadInput("--coded knows the contexts of our models only; leave it out")
    try:
        data, symbols = encode(model, image)
    except ImportError:
        raise BadInput("--coded needs the package constriction: pip install it") from None
    except ValueError as error:
        say(f"{name} cannot be coded: {error}")
        return None
    if not all(map(torch.equal, decode(model, data)[1], symbols)):
        raise RuntimeError("decoded symbols differ from those coded: is this torch deterministic?")
    return len(data)


def padded(image: Tensor, stride: int) -> Tensor:
    """The image  # [1, 3, H, W]  continued to the right and below to multiples of `stride`."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")


class Measured(NamedTuple):
    """A run's scores of a data set."""

    scores: list[Score]
    failed: dict[str, str]  # image -> why it has none
    first: tuple[str, Tensor, Tensor] | None  # name, original, decoded  # [3, H, W]


def measure_set(model: nn.Module, images: EvaluationSet, coded: bool = False) -> Measured:
    """All readable images by one model; those on which it fails are named.

    Raises:
        BadInput: `coded` is not possible.
    """
    measured = Measured([], {}, None)
    for name, pixels in images.images:
        try:
            score, decoded = measure(model, pixels, name, coded)
        except BadInput:
            raise
        except Exception as error:  # too large for memory, or whatever another's model raises
            measured.failed[name] = reason_of(error)
            continue
        if measured.first is None:
            measured = measured._replace(first=(name, pixels.float() / 255, decoded))
        measured.scores.append(score)
    return measured


def mean_of(scores: list[Score]) -> SetScore:
    bpp, psnr = fmean(score.bpp for score in scores), fmean(score.psnr for score in scores)
    written = [score.coded_bpp for score in scores if score.coded_bpp is not None]
    coded_bpp = fmean(written) if len(written) == len(scores) else None
    return SetScore(bpp, psnr, coded_bpp, scores)


class Example(NamedTuple):
    """The first image of the first data set, as a run decodes it."""

    name: str
    original: Tensor  # float32 [3, H, W]
    decoded: Tensor
    bpp: float
    psnr: float


@dataclass
class Evaluation:
    """Scores of every run by data set, in the order of the runs."""

    groups: list[Group]
    sets: list[EvaluationSet]
    scores: dict[str, dict[str, SetScore]] = field(default_factory=dict)  # run -> set -> means
    examples: dict[str, Example] = field(default_factory=dict)  # run -> what it makes of an image

    without: list[str] = field(default_factory=list)  # runs and sets that were left out, and why

    def keep_what_all_have(self, refused: Container[str]) -> None:
        """Drop runs that were refused, and images and sets that not every other run has."""
        for name in [name for name in self.scores if name in refused]:
            del self.scores[name]
        kept = [[run for run in group.runs if run.name in self.scores] for group in self.groups]
        self.groups = [replace(g, runs=runs) for g, runs in zip(self.groups, kept, strict=True)]
        self.groups = [group for group in self.groups if group.runs]
        for data in list(self.sets):
            for of_run in self.scores.values():
                scores = of_run[data.name].images if data.name in of_run else []
                scores = [score for score in scores if score.image not in data.left_out]
                if not scores:
                    self.without.append(f"left out {data.name} (no image that every run has)")
                    self.sets.remove(data)
                    break
                of_run[data.name] = mean_of(scores)
        if not self.sets:
            raise BadInput("no data set has an image that every run can code; name another --data")
        names = [data.name for data in self.sets]
        for run, of_run in self.scores.items():
            self.scores[run] = {name: of_run[name] for name in names}

    def absent(self) -> list[str]:
        """What is in no result, a line each."""
        images = [f"skipped {reason}" for data in self.sets for reason in data.skipped]
        for data in self.sets:
            images += [
                f"left out {name} of {data.name} ({reason})"
                for name, reason in data.left_out.items()
            ]
        return self.without + images

    def curves(self) -> Curves:
        return {
            (group.name, data.name): {
                variant: points([(run.lam, *self.scores[run.name][data.name][:2]) for run in runs])
                for variant, runs in group.variants().items()
            }
            for group in self.groups
            for data in self.sets
        }

    def pictures(self) -> dict[str, list[Shown]]:
        """File name -> original and reconstructions, for each group and lambda; one seed each."""
        pictures = {}
        for place, group in enumerate(self.groups):
            for lam in sorted({run.lam for run in group.runs}):
                chosen = {
                    variant: next(run for run in runs if run.lam == lam)
                    for variant, runs in group.variants().items()
                    if any(run.lam == lam for run in runs)
                }
                examples = {v: self.examples[run.name] for v, run in chosen.items()}
                first = next(iter(examples.values()))  # one that a run failed on is of few runs
                examples = {v: one for v, one in examples.items() if one.name == first.name}
                shown = [Shown(f"{first.name}\n{group.name}, lambda {lam:g}", first.original)]
                shown += [
                    Shown(f"{variant}\n{one.bpp:.3f} bpp, {one.psnr:.2f} dB", one.decoded)
                    for variant, one in examples.items()
                ]
                pictures[f"reconstructions_{place + 1}_lambda_{lam:g}.png"] = shown
        return pictures


def evaluate(
    groups: Sequence[Group], sets: Sequence[EvaluationSet], device: str, coded: bool
) -> Evaluation:
    """Every run's model on every image of every set; `coded` by a range coder too.

    A run, a set or an image that fails is named and left out, an image for all runs.

    Raises:
        BadInput: no run has a model, or no set an image that can be read.
    """
    evaluation = Evaluation(list(groups), list(sets))
    refused: dict[str, BadInput] = {}
    for group in groups:
        for run in group.runs:
            try:
                _evaluate_one(run, evaluation, device, coded)
            except BadInput as error:
                refused[run.name] = error
    if not evaluation.scores.keys() - refused:
        raise next(iter(refused.values()))
    for name, error in refused.items():
        evaluation.without.append(f"left out the run {name} ({error})")
    evaluation.keep_what_all_have(refused)
    for line in evaluation.absent():
        say(line)
    return evaluation


def _evaluate_one(run: Run, evaluation: Evaluation, device: str, coded: bool) -> None:
    model, config = load_model(run.folder)
    if config != run.config:
        raise BadInput(f"{run.name}: model.pt and result.json are of two runs; train anew")
    model.to(device)
    evaluation.scores[run.name] = {}
    unreadable = []
    for data in evaluation.sets:
        scores, failed, first = measure_set(model, data, coded)
        if failed and not scores:
            image, reason = next(iter(failed.items()))
            raise BadInput(f"{run.name} codes no image of {data.name}, first {image}: {reason}")
        if first is None:
            unreadable.append(data)
            continue
        data.left_out.update(failed)
        score = mean_of(scores)
        evaluation.scores[run.name][data.name] = score
        if run.name not in evaluation.examples:
            one = score.images[0]
            evaluation.examples[run.name] = Example(*first, one.bpp, one.psnr)
        say(f"{run.name}, {data.name}: {score.bpp:.4f} bpp, {score.psnr:.2f} dB")
    if len(unreadable) == len(evaluation.sets):
        raise BadInput(f"no image of {unreadable[0].name} can be read; name another --data")
