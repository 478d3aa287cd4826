"""All runs on all data sets: what `report` writes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from bench.command import BadInput
from bench.lic.data import EvaluationSet
from bench.lic.evaluation.curves import points
from bench.lic.evaluation.pictures import Curves, Shown
from bench.lic.evaluation.quality import SetScore, measure_set
from bench.lic.evaluation.runs import Group, Run
from bench.lic.training import load_model, say


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
                first = next(iter(examples.values()))
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

    Raises:
        BadInput: a run has no model, or a set no image that can be read.
    """
    evaluation = Evaluation(list(groups), list(sets))
    for group in groups:
        for run in group.runs:
            _evaluate_one(run, evaluation, device, coded)
    for data in sets:
        for reason in data.skipped:
            say(f"skipped {reason}")
    return evaluation


def _evaluate_one(run: Run, evaluation: Evaluation, device: str, coded: bool) -> None:
    model, config = load_model(run.folder)
    if config != run.config:
        raise BadInput(f"{run.name}: model.pt and result.json are of two runs; train anew")
    model.to(device)
    evaluation.scores[run.name] = {}
    for data in evaluation.sets:
        score, first = measure_set(model, data, coded)
        if score is None or first is None:
            raise BadInput(f"no image of {data.name} can be read; name another --data")
        evaluation.scores[run.name][data.name] = score
        if run.name not in evaluation.examples:
            one = score.images[0]
            evaluation.examples[run.name] = Example(*first, one.bpp, one.psnr)
        say(f"{run.name}, {data.name}: {score.bpp:.4f} bpp, {score.psnr:.2f} dB")
