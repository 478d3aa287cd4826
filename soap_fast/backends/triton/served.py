"""Which tensors the kernels serve."""

from __future__ import annotations

import torch

from soap_fast.backends.triton.ops.plane import walkable
from soap_fast.step.call import state_dtype
from soap_fast.step.layout import layout_of
from soap_fast.step.plan import TensorPlan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unserved(param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan) -> str | None:
    """What of a tensor the kernels do not serve; None if they serve it."""
    if state_dtype(param) != torch.float32:
        return f"dtype {param.dtype}"
    if grad.dtype not in DTYPES:
        return f"a gradient of dtype {grad.dtype}"
    if param.numel() == 0:
        return "no elements"
    if max(param.numel(), span(param), span(grad)) >= 2**30:
        return "2^30 elements or more, or as many between its first and its last"
    layout = layout_of(plan)
    for what, stride in (("strides", param.stride()), ("a gradient with strides", grad.stride())):
        if not walkable(layout, stride):
            return f"{what} {stride}, more axes than a kernel walks"
    if any(size is not None and size >= 2**15 for size in plan.factors):
        return "a factor of 2^15 or more"
    return None


def span(tensor: torch.Tensor) -> int:
    """Elements of memory from a tensor's first element to its last."""
    return sum((d - 1) * s for d, s in zip(tensor.shape, tensor.stride(), strict=True))
