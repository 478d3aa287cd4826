"""SOAP as torch describes its own optimizers to their tests: configurations, schedulers, errors."""

from __future__ import annotations

import sys
from unittest import mock

import torch
from torch.optim import lr_scheduler

from soap_fast import SOAP

# Of this module torch's optimizers need a mark on tests of theirs; the rest of it are thousands of
# tests of operators, which take more than a second to import.
OF_OPERATORS = "torch.testing._internal.common_methods_invocations"
there = sys.modules.setdefault(OF_OPERATORS, mock.MagicMock())

# torch's own tests forbid their process to set precisions for good. Users do set them, and
# other tests of this process see that a step leaves them alone.
with mock.patch.object(torch.backends, "disable_global_flags"):
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
        optim_db,
    )
if isinstance(there, mock.MagicMock):
    del sys.modules[OF_OPERATORS]


def inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """Every option of SOAP at a value other than its default, and those that meet each other."""
    cases = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "Tensor lr": {"lr": torch.tensor(0.01)},
        "nonzero weight_decay": {"weight_decay": 0.1},
        "betas": {"betas": (0.9, 0.99), "shampoo_beta": 0.8},
        "eps": {"eps": 1e-6},
        "frequency": {"precondition_frequency": 2},
        "small modes only": {"max_precond_dim": 3},
        "merged": {"merge_dims": True, "data_format": "channels_last"},
        "1-D": {"precondition_1d": True},
        "normalized, uncorrected": {"normalize_grads": True, "correct_bias": False},
        "staggered": {"refresh_schedule": "staggered", "precondition_frequency": 3},
        "tolerance": {"refresh_tolerance": 0.1, "precondition_frequency": 2},
    }
    return [OptimizerInput(params=None, kwargs=kw, desc=desc) for desc, kw in cases.items()]


def error_inputs(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """torch's for all optimizers, but for a tensor lr of two elements, which we word otherwise."""
    weight = torch.nn.Parameter(torch.randn(2, 2, device=device, dtype=dtype))
    common = [
        case
        for case in get_error_inputs_for_all_optims(device, dtype)
        if case.error_regex != "Tensor lr must be 1-element"
    ]
    own = {
        "one element": ({"lr": torch.ones(2)}, "tensor of one element"),
        "beta": ({"betas": (1.0, 0.0)}, r"betas\[0\]=1.0 is not inside \[0, 1\)"),
        "decay": ({"weight_decay": -1}, "weight_decay=-1"),
    }
    return common + [
        ErrorOptimizerInput(
            OptimizerInput(params=[weight], kwargs=kwargs, desc=desc),
            error_type=ValueError,
            error_regex=regex,
        )
        for desc, (kwargs, regex) in own.items()
    ]


def one_after_the_other(optimizer: SOAP) -> list[lr_scheduler.LRScheduler]:
    """A warm-up and a decay."""
    return [
        lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2),
        lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    ]


# The widest set that torch tries on one optimizer, SGD, and what the paper's training uses.
SCHEDULERS = [
    *next(info for info in optim_db if info.optim_cls is torch.optim.SGD).scheduler_inputs,
    [lambda opt: lr_scheduler.MultiStepLR(opt, milestones=[3, 6])],
    [lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=10)],
    [lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=4)],
    [lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=30, cycle_momentum=False)],
    [lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=30)],  # cycles betas too
    [lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-2, step_size_up=4, cycle_momentum=False)],
    [lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch)],
    [lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9)],
    [lambda opt: lr_scheduler.SequentialLR(opt, one_after_the_other(opt), milestones=[2])],
    [lambda opt: lr_scheduler.ChainedScheduler(one_after_the_other(opt), optimizer=opt)],
]

INFO = OptimizerInfo(
    SOAP,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=SCHEDULERS,
    supported_impls=(),  # neither foreach nor fused is a keyword here: `backend` chooses
    not_og_supported_flags=(),
    supports_complex=False,
)
