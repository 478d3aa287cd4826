"""The runs of a comparison, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.lic.comparison.presets import Preset, Trial
from bench.lic.search import FURTHER
from bench.lic.style import table
from bench.lic.training import Config

SEARCH_SEED = 1000  # no run that is compared has it


@dataclass(frozen=True)
class Variant:
    optimizer: str
    frequency: int  # of refreshes; means nothing to Adam

    @property
    def name(self) -> str:
        return self.optimizer if self.optimizer == "adam" else f"{self.optimizer}_{self.frequency}"


def variants(preset: Preset) -> list[Variant]:
    """All optimizers at one frequency, then soap_fast at the others; each once."""
    further = [Variant("soap_fast", frequency) for frequency in preset.frequencies]
    compared = [Variant(name, preset.frequency) for name in preset.optimizers]
    return list(dict.fromkeys(compared + (further if "soap_fast" in preset.optimizers else [])))


def search_config(
    preset: Preset, trial: Trial, optimizer: str, settings: Mapping[str, Any]
) -> Config:
    """A short run of its own seed."""
    variant = Variant(optimizer, preset.frequency)
    run = _config(preset, trial, variant, _searched_lambda(trial), settings)
    return Config(
        **{**run, "steps": trial.search_steps, "seed": SEARCH_SEED, "lr": preset.rate}
        | _schedule(preset, trial.search_steps)
    )


def runs(
    preset: Preset, trial: Trial, rates: Mapping[str, float], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Config]]:
    """(folder name, config) of every run of one model.

    Seed by seed each variant takes its turn, a different one first each time, so that a machine
    that grows slower or faster does so for all of them.
    """
    chosen = variants(preset)
    for lam in trial.lambdas:
        for seed in range(preset.seeds):
            first = seed % len(chosen)
            for variant in [*chosen[first:], *chosen[:first]]:
                if variant.optimizer in rates:
                    config = _config(preset, trial, variant, lam, settings)
                    name = f"{variant.name}_lambda_{lam:g}_seed_{seed}"
                    yield name, Config(**{**config, "seed": seed, "lr": rates[variant.optimizer]})


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
    if not trial.search_steps:
        return "none"
    count = len(preset.optimizers) * (len(preset.grid) + FURTHER)
    return f"{count} runs of {trial.search_steps:,} steps"


def _searched_lambda(trial: Trial) -> float:
    """The middle one, whose rate the others take too."""
    return trial.lambdas[len(trial.lambdas) // 2]


def _rates(preset: Preset) -> str:
    if any(trial.search_steps for trial in preset.trials):
        grid = ", ".join(f"{rate:g}" for rate in preset.grid)
        lambdas = {f"{_searched_lambda(trial):g}" for trial in preset.trials if trial.search_steps}
        return (
            f"for every optimizer the best of {grid} and {FURTHER} others that these lead to, at "
            f"lambda {', '.join(sorted(lambdas))}"
        )
    return f"{preset.rate:g} for every optimizer"
