"""Half precision of a forward pass, and the scale that keeps float16's gradients in range."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# The largest gradient is that of the last layer's biases, 2 lambda 255² mean(error) / 3: at most
# 2168 where lambda <= 0.05, so that the first step fits into float16, whose largest number is
# 65504. From torch's own first scale, 65536, the first eleven steps would be lost.
FIRST_SCALE = 16.0


def autocast(amp: str | None, device: str) -> AbstractContextManager[object]:
    """For the model's forward. Entropy models leave it by themselves: likelihoods are float32."""
    if amp is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, TYPES[amp])


def scaler(amp: str | None, device: str) -> torch.amp.GradScaler:
    """Does nothing but for float16, whose smallest number a gradient would soon be below."""
    kind = torch.device(device).type
    return torch.amp.GradScaler(kind, init_scale=FIRST_SCALE, enabled=amp == "fp16")
