"""What one training run is made of; two runs with equal configs give equal results on the CPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from bench.files import BadInput


def apply_layout(model: nn.Module, channels_last: bool, device: str) -> torch.memory_format:
    """Bring the model's filters into the layout, and return it: its images are to have it too.

    Raises:
        BadInput: torch would corrupt memory. On a CPU the gradient of a 1x1 filter with a stride
            writes beyond its end when channels come last and are few (torch 2.13 with oneDNN).
    """
    if not channels_last:
        return torch.contiguous_format
    if device.startswith("cpu") and any(map(_strided_point, model.modules())):
        raise BadInput(
            "--channels_last on a CPU corrupts memory where a 1x1 convolution has a stride, as in "
            "this model; leave it out"
        )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch.channels_last


def _strided_point(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
    )


SCHEDULES = ("cosine", "constant", "multistep", "plateau")
PRECISIONS = ("bf16", "fp16")
EVALUATIONS = 40  # of a run, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Config:
    """One model, one optimizer, and all that moves a bit of the result."""

    model: str  # of `bench.lic.models.MODELS`, or package.module:Class
    factor: float = 1.0  # of all the model's widths
    optimizer: str  # of `bench.lic.optimizers.BUILDERS`, or package.module:Class
    optimizer_options: dict[str, Any] = field(default_factory=dict)  # beyond those below
    lr: float
    lam: float  # weight of the distortion, lambda
    steps: int
    batch: int  # crops in a step, of all processes together
    crop: int  # side of a training crop in pixels
    flip: bool = True  # mirror half of the crops
    seed: int = 0  # of weights, crops and noise
    precondition_frequency: int = 10
    schedule: str = "cosine"  # of SCHEDULES
    milestones: tuple[int, ...] = ()  # steps after which multistep multiplies the rate by gamma
    gamma: float = 0.1  # of multistep and of plateau
    patience: int = 10  # evaluations without a better one after which plateau acts
    evaluate_every: int = 0  # steps; 0 stands for EVALUATIONS of them in a run
    amp: str | None = None  # of PRECISIONS; None is float32 throughout
    channels_last: bool = False
    compile: str | None = None  # mode of torch.compile
    threads: int = 1  # sums are split over threads, so their number moves the last bits
    device: str = "cpu"
    world: int = 1  # processes that share each batch
    images: str = ""  # fingerprint of what is trained on and evaluated

    @property
    def evaluation_interval(self) -> int:
        return self.evaluate_every or max(1, self.steps // EVALUATIONS)

    def as_dict(self) -> dict[str, Any]:
        """As JSON will give it back: tuples, of options too, are lists."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """`name is this, was that` for every field in which a saved config differs from this."""
        mine = self.as_dict()
        return [
            f"{field.name} is {mine[field.name]}, was {saved.get(field.name)}"
            for field in fields(self)
            if mine[field.name] != saved.get(field.name)
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
