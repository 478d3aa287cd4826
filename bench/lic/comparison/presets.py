"""What is compared: a small setting for a laptop, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    search_steps: int  # of each run that looks for a learning rate; 0: no search
    lambdas: tuple[float, ...]


@dataclass(frozen=True)
class Preset:
    """Everything but the machine and the images.

    Attributes:
        optimizers: compared at precondition_frequency `frequency`.
        seeds: of weights, crops and noise; searches use others.
        frequencies: further ones, of soap_fast alone.
        grid: learning rates that a search starts with; see bench/lic/search.py.
        rate: of every optimizer where there is no search.
        schedule, milestones: of the rate; milestones in parts of the run.
        data: what --data must name; empty where scikit-image's photos will do.
        threads: of the CPU; None takes torch's choice.
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
    threads: int | None = None
    checkpoint_every: int = 50


# One step of these two costs Adam 79 and 170 ms on one core, soap_fast 91 and 204,
# pytorch_optimizer 115 and 257, an evaluation 100 and 170: 26 minutes in all, timed beside other
# work. A second thread gains nothing with maps this small, and disturbs the times. TCM's reduced
# step is the cheapest per pixel of the three others': LALIC's takes as long for a quarter of them.
CPU = Preset(
    trials=(
        Trial("elic", 1 / 8, 8, 64, 360, 100, (0.013,)),
        Trial("tcm_64", 1 / 16, 2, 128, 160, 50, (0.013,)),
    ),
    optimizers=("adam", "soap_fast", "pytorch_optimizer"),
    seeds=3,
    frequencies=(5, 20),
    grid=(6e-4, 2.4e-3, 9.6e-3),
    rate=1e-4,
    schedule="cosine",
    milestones=(),
    data="",
    threads=1,
    limits=(
        "The models have a small part of their published widths, and see a few thousand small "
        "crops of four photos: thousands of times less than in the paper. These are the first "
        "minutes of training, where a preconditioner matters most; how far Adam catches up over a "
        "million steps they do not show.",
        "One photo is held out. Differences in R-D loss are of that photo; it also chose the "
        "learning rates (all optimizers have this advantage alike).",
        "A few seeds give a spread, no significance: differences smaller than it are none.",
        "Rates are searched by shorter runs than those compared, which favours larger rates.",
        "Small layers make the optimizer's share of a step larger, and a CPU makes it another one "
        "than a GPU: what a step costs at full width is measured by `python -m bench step`.",
    ),
    sources=(),
)

PAPER = Preset(
    trials=tuple(
        Trial(model, 1.0, 8, 256, EPOCHS * COCO_IMAGES // 8, 0, LAMBDAS)
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
        "(`--search-steps` searches it), and when it falls, to a tenth after 75 and 90 %.",
    ),
)

PRESETS = {"cpu": CPU, "paper": PAPER}

# The study's: the same, with Adam and soap_fast only, and the paper's frequencies beside 10.
FREQUENCIES = (5, 20, 50)
STUDIES = {
    "cpu": replace(CPU, optimizers=("adam", "soap_fast"), frequencies=FREQUENCIES),
    "gpu": replace(
        PAPER,
        trials=(Trial("elic", 1.0, 8, 256, 500, 0, (0.013,)),),
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
