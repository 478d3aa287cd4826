"""What is compared, for a laptop or as in the paper, and the runs in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.lic.optimizers import ADAMS, one_algorithm
from bench.lic.search import RATIO, SEEDS, at_the_end
from bench.lic.style import table
from bench.lic.training import Config
from bench.lic.training.config import EVALUATIONS

LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483)
COCO_IMAGES = 118_287  # of train2017
EPOCHS = 120


@dataclass(frozen=True)
class Trial:
    """One model, and how long it is trained."""

    model: str
    factor: float  # of all its widths
    batch: int
    crop: int
    steps: int
    searched: bool  # whether each optimizer gets a rate of its own, by runs of as many steps
    lambdas: tuple[float, ...]


@dataclass(frozen=True)
class Preset:
    """Everything but the machine and the images.

    Attributes:
        optimizers: compared at precondition_frequency `frequency`.
        seeds: of weights, crops and noise; searches use others.
        frequencies: further ones, of soap_fast alone.
        grid: learning rates that a search starts with, by one seed; see bench/lic/search.py.
        search_seeds: of each rate near the best one.
        rate: of every optimizer where there is no search.
        schedule, milestones: of the rate; milestones in parts of the run.
        data: what --data must name; empty where scikit-image's photos will do.
        threads: of the CPU; None takes torch's choice.
        evaluations: of a run that is compared; a search has one, at the end.
        checkpoint_every: steps; of a large model a checkpoint is a gigabyte, with SOAP's factors.
        limits: what the result cannot show.
        sources: where the setting comes from.
    """

    trials: tuple[Trial, ...]
    optimizers: tuple[str, ...]
    seeds: int
    frequencies: tuple[int, ...]
    grid: tuple[float, ...]
    rate: float
    schedule: str
    milestones: tuple[float, ...]
    data: str
    limits: tuple[str, ...]
    sources: tuple[str, ...]
    frequency: int = 10
    search_seeds: int = SEEDS
    threads: int | None = None
    evaluations: int = EVALUATIONS
    checkpoint_every: int = 50


# One step of these two costs Adam 79 and 170 ms on one core, soap_fast 91 and 204,
# pytorch_optimizer 115 and 257, an evaluation 100 and 170. An optimizer's search is of 12 runs, and
# 3 more each time that the best rate moves: with one move on average, 15 runs of four optimizers,
# 43 minutes. Those compared take 19, with 20 evaluations each: about an hour in all. A second
# thread gains nothing with maps this small, and disturbs the times. TCM's reduced step is the
# cheapest per pixel of the three others': LALIC's takes as long for a quarter of them.
CPU = Preset(
    trials=(
        Trial("elic", 1 / 8, 8, 64, 240, True, (0.013,)),
        Trial("tcm_64", 1 / 16, 2, 128, 110, True, (0.013,)),
    ),
    optimizers=("adam", "adam_soap_betas", "soap_fast", "pytorch_optimizer"),
    seeds=4,
    frequencies=(),
    grid=(7e-4, 1.9e-3, 5.2e-3, 1.4e-2),
    rate=1e-4,
    schedule="cosine",
    milestones=(),
    data="",
    threads=1,
    evaluations=20,
    limits=(
        "The models have a small part of their published widths, and see fewer than 2,000 small "
        "crops of four photos: thousands of times less than in the paper. These are the first "
        "seconds of training, where a preconditioner matters most; how far Adam catches up over a "
        "million steps they do not show.",
        "One photo is held out. Differences in R-D loss are of that photo; it also chose the "
        "learning rates (all optimizers have this advantage alike).",
        "Few seeds tell large differences only; a rate searched by three is no exact one either.",
        "Small layers make the optimizer's share of a step larger, and a CPU makes it another one "
        "than a GPU: what a step costs at full width is measured by `python -m bench step`.",
    ),
    sources=(),
)

PAPER = Preset(
    trials=tuple(
        Trial(model, 1.0, 8, 256, EPOCHS * COCO_IMAGES // 8, False, LAMBDAS)
        for model in ("elic", "tcm_64", "lalic", "dcae")
    ),
    optimizers=("adam", "soap_fast"),
    seeds=1,
    frequencies=(),
    grid=(5e-5, 1e-4, 2e-4, 4e-4),
    rate=1e-4,
    schedule="multistep",
    milestones=(0.75, 0.9),
    data="COCO 2017",
    checkpoint_every=5000,
    limits=(),
    sources=(
        "arXiv 2601.20769: SOAP in place of Adam in these four models; 70 % fewer steps, 57.7 % "
        "less time, 3 % better BD-rate.",
        "The same authors' earlier study of these models' training (arXiv 2505.18107): 118,287 "
        "images of COCO 2017, crops of 256x256, six values of lambda, 120 epochs. There, larger "
        "lambdas are fine-tuned from the smallest; here each is trained from its own start.",
        "Ours, since no source at hand states them: batch 8, the rate 1e-4 for both optimizers "
        "(`--search` searches it), and when it falls, to a tenth after 75 and 90 %.",
    ),
)

PRESETS = {"cpu": CPU, "paper": PAPER}

# The study's: the same, with Adam and soap_fast only, and the paper's frequencies beside 10.
FREQUENCIES = (5, 20, 50)
STUDIES = {
    "cpu": replace(
        CPU,
        optimizers=("adam", "soap_fast"),
        frequencies=FREQUENCIES,
        evaluations=EVALUATIONS,  # after every fourth it looks
    ),
    "gpu": replace(
        PAPER,
        trials=(Trial("elic", 1.0, 8, 256, 500, False, (0.013,)),),
        frequencies=FREQUENCIES,
        rate=2e-4,
        schedule="cosine",
        milestones=(),
        data="",
        limits=(
            "One seed, a few hundred steps on a handful of photos, one rate for both optimizers.",
            "One value of lambda gives no curves, and so no BD-rate.",
        ),
        sources=("The width, the batch and the crops of arXiv 2601.20769; no other part of it.",),
    ),
    "paper": replace(PAPER, frequencies=FREQUENCIES),
}


SEARCH_SEED = 1000  # and those after it; no run that is compared has one of them


@dataclass(frozen=True)
class Variant:
    optimizer: str
    frequency: int  # of refreshes; means nothing to Adam
    rate_of: str = ""  # the optimizer whose rate it has, in place of its own

    @property
    def name(self) -> str:
        name = self.optimizer if self.optimizer in ADAMS else f"{self.optimizer}_{self.frequency}"
        return f"{name}_at_rate_of_{self.rate_of}" if self.rate_of else name

    @property
    def label(self) -> str:
        """The optimizer, as tables and sentences name it."""
        return f"{self.optimizer} at {self.rate_of}'s rate" if self.rate_of else self.optimizer


def variants(preset: Preset) -> list[Variant]:
    """Each once: all optimizers at one frequency; those of soap_fast's algorithm at its rate too,
    where rates are searched; soap_fast at the other frequencies.
    """
    compared = [Variant(name, preset.frequency) for name in preset.optimizers]
    if "soap_fast" not in preset.optimizers:
        return list(dict.fromkeys(compared))
    if any(trial.searched for trial in preset.trials):
        compared += [
            Variant(name, preset.frequency, "soap_fast")
            for name in preset.optimizers
            if one_algorithm(name, "soap_fast")
        ]
    further = [Variant("soap_fast", frequency) for frequency in preset.frequencies]
    return list(dict.fromkeys(compared + further))


def search_config(
    preset: Preset, trial: Trial, optimizer: str, settings: Mapping[str, Any]
) -> Config:
    """A run as those compared, but for its seed; the rate stands for those that are searched."""
    variant = Variant(optimizer, preset.frequency)
    run = _config(preset, trial, variant, _searched_lambda(trial), settings)
    return at_the_end(Config(**{**run, "seed": SEARCH_SEED, "lr": preset.rate}))


def runs(
    preset: Preset, trial: Trial, rates: Mapping[str, float], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Config]]:
    """(folder name, config) of every run of one model.

    Seed by seed each variant takes its turn, a different one first each time, so that a machine
    that grows slower or faster does so for all of them. A variant at another's rate that has this
    rate anyway has no runs of its own.
    """
    chosen = variants(preset)
    for lam in trial.lambdas:
        for seed in range(preset.seeds):
            first = seed % len(chosen)
            for variant in [*chosen[first:], *chosen[:first]]:
                if _has_runs(variant, rates):
                    config = _config(preset, trial, variant, lam, settings)
                    name = f"{variant.name}_lambda_{lam:g}_seed_{seed}"
                    rate = rates[variant.rate_of or variant.optimizer]
                    yield name, Config(**{**config, "seed": seed, "lr": rate})


def _has_runs(variant: Variant, rates: Mapping[str, float]) -> bool:
    if variant.optimizer not in rates or not variant.rate_of:
        return variant.optimizer in rates
    return rates.get(variant.rate_of) not in (None, rates[variant.optimizer])


def _config(
    preset: Preset, trial: Trial, variant: Variant, lam: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **settings,
        **_schedule(preset, trial.steps),
        "model": trial.model,
        "factor": trial.factor,
        "batch": trial.batch,
        "crop": trial.crop,
        "steps": trial.steps,
        "lam": lam,
        "optimizer": variant.optimizer,
        "precondition_frequency": variant.frequency,
        "evaluate_every": max(1, trial.steps // preset.evaluations),
    }


def _schedule(preset: Preset, steps: int) -> dict[str, Any]:
    milestones = sorted({max(1, round(part * steps)) for part in preset.milestones})
    return {"schedule": preset.schedule, "milestones": tuple(milestones)}


def describe(preset: Preset) -> str:
    """The plan in Markdown, before anything is run."""
    rows = [
        {
            "model": f"{trial.model} x {trial.factor:g}",
            "batch": trial.batch,
            "crop": trial.crop,
            "steps": f"{trial.steps:,}",
            "lambda": ", ".join(f"{lam:g}" for lam in trial.lambdas),
            "searches": _searches(preset, trial),
            "runs": len(variants(preset)) * preset.seeds * len(trial.lambdas),
        }
        for trial in preset.trials
    ]
    names = ", ".join(variant.name for variant in variants(preset))
    lines = [
        f"variants (optimizer and frequency of its refreshes): {names}; {preset.seeds} seeds",
        f"learning rate: {_rates(preset)}; schedule {preset.schedule}"
        + "".join(f", a tenth after {part:.0%}" for part in preset.milestones),
        f"images: {preset.data or 'scikit-image photos, or --data DIR'}",
        *preset.sources,
    ]
    return "\n".join([table(rows), "", *(f"- {line}" for line in lines)])


def _searches(preset: Preset, trial: Trial) -> str:
    if not trial.searched:
        return "none"
    least = len(preset.grid) + 3 * preset.search_seeds - 1
    return f"{len(preset.optimizers)} of {least} runs and more"


def _searched_lambda(trial: Trial) -> float:
    """The middle one, whose rate the others take too."""
    return trial.lambdas[len(trial.lambdas) // 2]


def _rates(preset: Preset) -> str:
    if any(trial.searched for trial in preset.trials):
        grid = ", ".join(f"{rate:g}" for rate in preset.grid)
        lambdas = {f"{_searched_lambda(trial):g}" for trial in preset.trials if trial.searched}
        return (
            f"for every optimizer its own. The best of {grid} by one seed, then by steps of "
            f"{RATIO:g} from it the lowest mean of {preset.search_seeds} seeds, both neighbours "
            "tried by as many; by runs as long as those compared, of other seeds, at lambda "
            f"{', '.join(sorted(lambdas))}"
        )
    return f"{preset.rate:g} for every optimizer"
