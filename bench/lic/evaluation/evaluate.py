"""All runs on all data sets: what `report` writes down."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from bench.files import BadInput
from bench.lic.data import EvaluationSet
from bench.lic.evaluation.curves import points
from bench.lic.evaluation.pictures import Curves, Shown
from bench.lic.evaluation.quality import SetScore, mean_of, measure_set
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
