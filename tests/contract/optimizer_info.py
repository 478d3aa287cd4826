"""SOAP as PyTorch's own optimizer tests would be told of it: torch's machinery, our entries."""

from __future__ import annotations

import torch
from torch.optim import Adam
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
    optim_db,
)

from soap_fast import SOAP

ADAM = next(info for info in optim_db if info.optim_cls is Adam)


def inputs(device, dtype=None) -> list[OptimizerInput]:
    """Every option of ours once at least, those with which torch tests Adam among them."""
    kwargs = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "Tensor lr": {"lr": torch.tensor(0.01)},
        "nonzero weight_decay": {"weight_decay": 0.1},
        "moments": {"betas": (0.9, 0.99), "shampoo_beta": 0.8, "eps": 1e-6},
        "refresh at every call": {"precondition_frequency": 1},
        "staggered": {"precondition_frequency": 3, "refresh_schedule": "staggered"},
        "tolerance": {"precondition_frequency": 2, "refresh_tolerance": 0.1},
        "no factors": {"max_precond_dim": 0},
        "merged": {"merge_dims": True, "max_precond_dim": 12, "data_format": "channels_last"},
        "factors of vectors": {"precondition_1d": True},
        "normalized": {"normalize_grads": True},
        "no bias correction": {"correct_bias": False},
    }
    return [OptimizerInput(params=None, kwargs=given, desc=desc) for desc, given in kwargs.items()]


def error_inputs(device, dtype) -> list[ErrorOptimizerInput]:
    """torch's for all optimizers, and ours; of two kinds our messages are our own."""
    ours = {"Tensor lr must be 1-element": "a dense floating point tensor of one element"}
    found = get_error_inputs_for_all_optims(device, dtype)
    for given in found:
        given.error_regex = ours.get(given.error_regex, given.error_regex)
    for kwargs, error, message in (
        ({"betas": (1.0, 0.0)}, ValueError, r"betas\[0\]=1.0"),
        ({"weight_decay": -1}, ValueError, "weight_decay=-1"),
        *(
            ({name: True}, TypeError, f"unexpected keyword argument '{name}'")
            for name in ("foreach", "fused", "capturable", "differentiable", "maximize")
        ),
    ):
        given = OptimizerInput(params=None, kwargs=kwargs, desc=message)
        found.append(ErrorOptimizerInput(given, error_type=error, error_regex=message))
    return found


SOAP_INFO = OptimizerInfo(
    SOAP,
    optim_inputs_func=inputs,
    # Those of Adam, and of the others what Adam has not.
    scheduler_inputs=ADAM.scheduler_inputs,
    optim_error_inputs_func=error_inputs,
    supported_impls=(),
    not_og_supported_flags=(),
    supports_complex=False,
)
