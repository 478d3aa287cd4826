"""The optimizers that are compared, all with the same options, and how each one is had."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import torch

import soap_fast
from bench.command import ROOT, named
from bench.envelope import version

OURS = "soap_fast"
OPTIONS: dict[str, Any] = {
    "lr": 3e-3,
    "betas": (0.95, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "precondition_frequency": None,  # of each measurement
    "max_precond_dim": 10000,
}
# Other names under which optimizers take these.
ALIASES = {
    "precondition_frequency": ("precond_freq", "preconditioning_steps"),
    "max_precond_dim": ("max_precondition_dim",),
}

Params = list[torch.nn.Parameter]


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
    """

    build: Callable[..., torch.optim.Optimizer]
    refreshed: Callable[[Any, int, int], bool | None] = lambda _, call, period: call % period == 0
    install: str | None = None
    note: str | None = None
    package: str = "torch"


def accepted(cls: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Of these options those that the class takes, by the names it has for them."""
    parameters = inspect.signature(cls).parameters
    found = {}
    for option, value in options.items():
        names = [n for n in (option, *ALIASES.get(option, ())) if n in parameters]
        if names:
            found[names[0]] = value
    return found


def with_ours(cls: Callable[..., Any], params: Params, frequency: int, **more: Any) -> Any:
    """The optimizer with our options as far as it takes them."""
    options = OPTIONS | {"precondition_frequency": frequency}
    return cls(params, **accepted(cls, options) | more)


def _pytorch_optimizer(params: Params, frequency: int) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return with_ours(SOAP, params, frequency)


def _heavyball(params: Params, frequency: int) -> torch.optim.Optimizer:
    import heavyball

    # One switch for all of its optimizers: functions as they are written.
    heavyball.utils.compile_mode = None
    # Its own defaults are a frequency of 2 and merged modes.
    options = OPTIONS | {"precondition_frequency": frequency}
    return heavyball.SOAP(params, shampoo_beta=options["betas"][1], merge_dims=False, **options)


class Oracle(torch.optim.Optimizer):
    """`tests/oracle.py` as an optimizer: tensor by tensor and mode by mode, as the paper reads."""

    def __init__(self, params: Params, frequency: int, **more: Any) -> None:
        sys.path.append(str(ROOT / "tests"))
        from oracle import OracleSOAP

        super().__init__(params, {})
        self.params = params
        self.oracle = with_ours(OracleSOAP, params, frequency, **more)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.oracle.step([param.grad for param in self.params])
        for place, param in enumerate(self.params):
            param.copy_(self.oracle.params[place])
            self.state[param] = vars(self.oracle.states[place])


def _torchs(cls: Callable[..., Any], note: str, **how: bool) -> Peer:
    return Peer(partial(with_ours, cls, **how), lambda *_: False, note=f"torch's{note}")


OUR_PEER = Peer(partial(with_ours, soap_fast.SOAP), package=OURS)
PEERS = {
    "pytorch_optimizer": Peer(
        _pytorch_optimizer,
        install="pip install pytorch_optimizer==4.1.0",
        note="three rotations a step, not four: exp_avg is kept unrotated; its first call only "
        "starts the bases, too",
        package="pytorch_optimizer",
    ),
    "heavyball": Peer(
        _heavyball,
        # It sums up 1 / frequency and refreshes where an integer is passed: at calls 10, 19, 29.
        refreshed=lambda optimizer, call, frequency: optimizer._is_preconditioning,
        install="pip install heavyball==3.2.1",
        note="eager: heavyball.utils.compile_mode = None, where its default is torch.compile; "
        "betas, frequency and merge_dims are set as ours; its first call only starts the bases, "
        "too",
        package="heavyball",
    ),
    "adamw": _torchs(torch.optim.AdamW, ", fused=True; no refreshes", fused=True),
    "oracle": Peer(Oracle, note="the reference's order of work, see tests/oracle.py"),
    "adamw_foreach": _torchs(torch.optim.AdamW, ", foreach=True", foreach=True),
    "adam": _torchs(torch.optim.Adam, " with its own default implementation"),
}


def optimizer_class(text: str) -> type[torch.optim.Optimizer]:
    """argparse.ArgumentTypeError where `text`, `package.module:Class`, names no optimizer."""
    found = named(text)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise argparse.ArgumentTypeError(f"{text!r} is no class of torch.optim.Optimizer")
    return found


def peer(name: str) -> Peer:
    """Ours, a peer, or `package.module:Class?option=value`; ArgumentTypeError for another name."""
    if name == OURS:
        return OUR_PEER
    if name in PEERS or ":" in name:
        return PEERS.get(name) or _foreign(name)
    known = f"{', '.join(PEERS)}, or package.module:Class"
    raise argparse.ArgumentTypeError(f"no peer {name!r}: take {known}")


@functools.cache
def _foreign(name: str) -> Peer:
    path, _, query = name.partition("?")
    cls = optimizer_class(path)
    try:
        options = {key: ast.literal_eval(value) for key, value in parse_qsl(query)}
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"{name!r}: write options as ?name=number") from None
    top = cls.__module__.partition(".")[0]
    peer = Peer(
        partial(with_ours, cls, **options),
        refreshed=lambda *_: None,
        note=f"set as ours: {', '.join(accepted(cls, OPTIONS)) or 'nothing'}; everything else is "
        f"{cls.__name__}'s own default; mean_ms is the arithmetic mean, for its refreshes are not "
        "known",
        package=importlib.metadata.packages_distributions().get(top, [top])[0],
    )
    ours = issubclass(cls, soap_fast.SOAP)
    return replace(peer, refreshed=OUR_PEER.refreshed, note=None) if ours else peer


def chosen(text: str) -> tuple[str, ...]:
    """Names of peers, for argparse, from `adamw,oracle`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        peer(name)
    return names


def build(
    name: str, params: Params, frequency: int, backend: str | None = None
) -> torch.optim.Optimizer:
    """Ours with this backend, or a peer; ValueError for a backend, ImportError for a peer."""
    more = {"backend": backend} if name == OURS else {}
    return peer(name).build(params, frequency, **more)


def origin(name: str) -> dict[str, str | None]:
    """Where an optimizer comes from, and what has to be known to read its numbers."""
    found = peer(name)
    return {"package": found.package, "version": version(found.package), "note": found.note}
