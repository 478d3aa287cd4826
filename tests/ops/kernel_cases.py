"""The tensors whose step is looked at kernel by kernel: of all classes of tiles."""

from __future__ import annotations

import functools

import torch
from launched import LaunchedAlone, short_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16

# Group by group: options, and its tensors by shape and dtype.
GROUPS = (
    (
        {"normalize_grads": True, "lr": 0.01},
        [
            ((67, 18, 3, 3), FLOAT),  # fold of 9, several tiles, two products; strided, see below
            ((5, 7, 5, 5), BRAIN),  # fold of 25
            ((6, 35), HALF),  # one product and a fold of one mode
            ((9, 17, 10), FLOAT),  # 3-D
            ((), FLOAT),
            ((6, 4, 3, 3), FLOAT),  # has a NaN
            ((1, 19, 1, 3), BRAIN),
            ((9, 8), FLOAT),  # has no gradient
        ],
    ),
    (
        {
            "max_precond_dim": 72,
            "precondition_1d": True,
            "shampoo_beta": 0.8,
            "betas": (0.9, 0.0),
            "correct_bias": False,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "noise_floor": 1e4,  # about as large as the entries
        },
        [
            ((75, 50), FLOAT),  # a plain mode
            ((1100,), FLOAT),  # nothing but a plain mode, several tiles
            ((20,), HALF),  # nothing but a fold
            ((5, 7, 9, 11), FLOAT),  # a fold and three products
            ((33, 34), FLOAT),  # two products, no fold
            ((3, 73, 5), FLOAT),  # a plain mode between two others
            # Gradients of these lie as planes do, see `LINEAR`.
            ((36, 16, 3, 3), FLOAT),  # several tiles
            ((12, 8, 5, 5), BRAIN),
            ((8, 12, 3, 3), FLOAT),  # but not at a multiple of 16 bytes
            ((12, 8), FLOAT),
            ((36, 8, 3, 3), FLOAT),  # lies as its plane does
        ],
    ),
)
POISONED, WITHOUT_GRADIENT = 5, 7
LINEAR, UNALIGNED, PLANAR = range(14, 18), 16, 18
INVERSE_SCALE = 0.7


def random_gradients(params, seed: int) -> None:
    """Of magnitudes that differ from row to row; strides of three sorts; both faults."""
    generator = torch.Generator().manual_seed(seed)
    for index, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator)
        if grad.dim():
            grad *= torch.randn(grad.shape[:1], generator=generator).exp()[
                (..., *[None] * (grad.dim() - 1))
            ]
        grad = grad.to(param.dtype)
        if index == UNALIGNED:
            one_more = torch.cat([grad.new_zeros(1), grad.flatten()]).to(DEVICE)
            grad = one_more[1:].view(grad.shape)
        elif index in LINEAR:
            pass
        elif index == PLANAR:
            grad = grad.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
        elif grad.dim() == 4:
            grad = grad.to(memory_format=torch.channels_last)
        elif index % 2 and grad.dim() > 1:  # every second element of something larger
            larger = torch.full((*grad.shape[:-1], 2 * grad.shape[-1]), float("nan"))
            larger = larger.to(param.dtype)
            larger[..., ::2] = grad
            grad = larger[..., ::2]
        param.grad = grad.to(DEVICE)


@functools.cache
def launched(precision: str) -> LaunchedAlone:
    generator = torch.Generator().manual_seed(0)
    groups = []
    for options, tensors in GROUPS:
        params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype))
            for shape, dtype in tensors
        ]
        groups.append({"params": params, **options})
    params = [param for group in groups for param in group["params"]]
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    random_gradients(params, 1)
    with short_sums(3):
        alone = LaunchedAlone(groups, precision)
    random_gradients(params, 2)
    params[POISONED].grad[0, 3, 1, 2] = float("nan")
    params[WITHOUT_GRADIENT].grad = None
    alone.step([param.grad for param in params], INVERSE_SCALE)
    return alone
