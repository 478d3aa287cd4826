"""The optimizers that are compared, all with the same options, and how each one is had."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.peers import foreign

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
            whether that call refreshed bases out; None where that is not known.
        install: the command that brings it.
        note: what has to be known to read its numbers.
        package: the distribution it comes from.
        around: a context for each of its calls, for a library with a switch that all share.
    """

    build: Callable[[Params, int], torch.optim.Optimizer]
    refreshed: Callable[[Any, int, int], bool | None] = _every
    install: str | None = None
    note: str | None = None
    package: str = "torch"
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def version(self) -> str | None:
        """None where it is not installed, or of no distribution."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


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

    options = _soap_options(frequency)
    # Its own defaults are a frequency of 2 and merged modes.
    return heavyball.SOAP(params, shampoo_beta=BETAS[1], merge_dims=False, **options)


@contextmanager
def _heavyball_compiles(compiles: bool) -> Iterator[None]:
    """Its switch, which is one for all of its optimizers, set for a call."""
    import heavyball

    before = heavyball.utils.compile_mode
    heavyball.utils.compile_mode = before if compiles else None  # functions as they are written
    try:
        yield
    finally:
        heavyball.utils.compile_mode = before


def _adam(params: Params, frequency: int) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS)


def _adamw(params: Params, frequency: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)


def _adamw_foreach(params: Params, frequency: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, foreach=True)


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


def _never(optimizer: torch.optim.Optimizer, call: int, frequency: int) -> bool:
    return False


def _unknown(optimizer: torch.optim.Optimizer, call: int, frequency: int) -> None:
    return None


# It sums up 1 / frequency and refreshes where an integer is passed: at calls 10, 19, 29.
_HEAVYBALL = Peer(
    _heavyball,
    refreshed=lambda optimizer, call, frequency: optimizer._is_preconditioning,
    install="pip install heavyball==3.2.1",
    package="heavyball",
)
_HEAVYBALL_SET = (
    "betas, frequency and merge_dims are set as ours; its first call only starts the bases, too"
)

PEERS = {
    "pytorch_optimizer": Peer(
        _pytorch_optimizer,
        install="pip install pytorch_optimizer==4.1.0",
        note="three rotations a step, not four: exp_avg is kept unrotated; its first call only "
        "starts the bases, too",
        package="pytorch_optimizer",
    ),
    "heavyball": replace(
        _HEAVYBALL,
        around=partial(_heavyball_compiles, False),
        note="eager: heavyball.utils.compile_mode = None, where its default is torch.compile; "
        + _HEAVYBALL_SET,
    ),
    "adamw": Peer(
        _adamw,
        refreshed=_never,
        note="torch's, fused=True; no refreshes",
    ),
    "oracle": Peer(
        _oracle, note="the reference's order of work, see bench/peers/oracle.py", package="torch"
    ),
    "heavyball_compiled": replace(
        _HEAVYBALL,
        around=partial(_heavyball_compiles, True),
        note="its default compile_mode; loading_ms has what it compiles at first, first_ms what of "
        "that a second optimizer compiles again; " + _HEAVYBALL_SET,
    ),
    "adamw_foreach": Peer(_adamw_foreach, refreshed=_never, note="torch's, foreach=True"),
    "adam": Peer(_adam, refreshed=_never, note="torch's with its own default implementation"),
}


def foreign_peer(name: str) -> Peer:
    """argparse.ArgumentTypeError where the name, `package.module:Class`, is of no optimizer."""
    cls = foreign.optimizer_class(name)
    return Peer(
        lambda params, frequency: cls(params, **foreign.accepted(cls, _soap_options(frequency))),
        refreshed=_unknown,
        note=foreign.described(cls, _soap_options(1)),
        package=foreign.distribution(cls),
    )


def peer(name: str) -> Peer:
    """The peer of this name, or an optimizer named `package.module:Class`."""
    return PEERS[name] if name in PEERS else foreign_peer(name)


def chosen(text: str) -> tuple[str, ...]:
    """Names of peers, for argparse, from `adamw,oracle`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if ":" in name:
            foreign_peer(name)
        elif name not in PEERS:
            known = f"{', '.join(PEERS)}, or package.module:Class"
            raise argparse.ArgumentTypeError(f"no peer {name!r}: take {known}")
    return names


def build(name: str, params: Params, frequency: int, backend: str | None) -> torch.optim.Optimizer:
    """Ours with this backend, or a peer; errors as of the two."""
    if name == OURS:
        return build_ours(params, frequency, backend)
    found = peer(name)
    with found.around():
        return found.build(params, frequency)


def around(name: str) -> AbstractContextManager[None]:
    """The context of a call of an optimizer."""
    return nullcontext() if name == OURS else peer(name).around()


def refreshed(
    name: str, optimizer: torch.optim.Optimizer, call: int, frequency: int
) -> bool | None:
    """Whether the call just made, the first being 0, refreshed bases; None: nobody knows."""
    return (_every if name == OURS else peer(name).refreshed)(optimizer, call, frequency)


def origin(name: str) -> dict[str, str | None]:
    """Where an optimizer comes from, and what has to be known to read its numbers."""
    if name == OURS:
        import soap_fast

        return {"package": OURS, "version": soap_fast.__version__, "note": None}
    found = peer(name)
    return {"package": found.package, "version": found.version, "note": found.note}
