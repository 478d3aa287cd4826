"""Half precision of a forward pass, and the scale that keeps float16's gradients in range."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(amp: str | None, device: str) -> AbstractContextManager[object]:
    """For the model's forward. Entropy models leave it by themselves: likelihoods are float32."""
    if amp is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, TYPES[amp])


def scaler(amp: str | None, device: str) -> torch.amp.GradScaler:
    """Does nothing but for float16, whose smallest number a gradient would soon be below."""
    return torch.amp.GradScaler(torch.device(device).type, enabled=amp == "fp16")
