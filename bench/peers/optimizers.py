"""The optimizers that are compared, all with the same options, and how each one is had."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

OURS = "soap_fast"
LR, BETAS, EPS, MAX_PRECOND_DIM = 3e-3, (0.95, 0.95), 1e-8, 10000

Params = list[torch.nn.Parameter]


def _every(optimizer: torch.optim.Optimizer, call: int, frequency: int) -> bool:
    return call % frequency == 0


@dataclass(frozen=True)
class Peer:
    """One optimizer.

    Attributes:
        build: parameters and precondition frequency in, an optimizer out; ImportError if it is not
            installed.
        refreshed: optimizer, number of the call just made (the first is 0) and frequency in,
            whether that call refreshed bases out.
        install: the command that brings it.
        note: what has to be known to read its numbers.
    """

    build: Callable[[Params, int], torch.optim.Optimizer]
    refreshed: Callable[[Any, int, int], bool] = _every
    install: str | None = None
    note: str | None = None


def build_ours(params: Params, frequency: int, backend: str | None) -> torch.optim.Optimizer:
    """ValueError for a backend that is unknown or does not run here."""
    from soap_fast import SOAP

    return SOAP(params, **_soap_options(frequency), backend=backend)


def _pytorch_optimizer(params: Params, frequency: int) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    options = _soap_options(frequency)
    return SOAP(params, max_precondition_dim=options.pop("max_precond_dim"), **options)


def _heavyball(params: Params, frequency: int) -> torch.optim.Optimizer:
    import heavyball

    heavyball.utils.compile_mode = None  # its switch: functions then run as they are written
    options = _soap_options(frequency)
    # Its own defaults are a frequency of 2 and merged modes.
    return heavyball.SOAP(params, shampoo_beta=BETAS[1], merge_dims=False, **options)


def _adamw(params: Params, frequency: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)


def _oracle(params: Params, frequency: int) -> torch.optim.Optimizer:
    from bench.peers.oracle import OracleSOAP

    return OracleSOAP(params, LR, BETAS, EPS, frequency, MAX_PRECOND_DIM)


def _soap_options(frequency: int) -> dict[str, Any]:
    return {
        "lr": LR,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": 0.0,
        "precondition_frequency": frequency,
        "max_precond_dim": MAX_PRECOND_DIM,
    }


PEERS = {
    "pytorch_optimizer": Peer(
        _pytorch_optimizer,
        install="pip install pytorch_optimizer==4.1.0",
        note="three rotations a step, not four: exp_avg is kept unrotated",
    ),
    "heavyball": Peer(
        _heavyball,
        # It sums up 1 / frequency and refreshes where an integer is passed: at calls 10, 19, 29.
        refreshed=lambda optimizer, call, frequency: optimizer._is_preconditioning,
        install="pip install heavyball",
        note="eager: heavyball.utils.compile_mode = None, where its default is torch.compile",
    ),
    "adamw": Peer(
        _adamw,
        refreshed=lambda optimizer, call, frequency: False,
        note="torch's, fused=True; no refreshes",
    ),
    "oracle": Peer(_oracle, note="the reference's order of work, see bench/peers/oracle.py"),
}


def chosen(text: str) -> tuple[str, ...]:
    """Names of peers, for argparse, from `adamw,oracle`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {name!r}: take {', '.join(PEERS)}")
    return names


def build(name: str, params: Params, frequency: int, backend: str | None) -> torch.optim.Optimizer:
    """Ours with this backend, or a peer; errors as of the two."""
    if name == OURS:
        return build_ours(params, frequency, backend)
    return PEERS[name].build(params, frequency)
