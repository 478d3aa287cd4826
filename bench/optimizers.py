"""The optimizers that are compared, all with the same options, and how each one is had."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.command import ROOT, named

OURS = "soap_fast"
LR, BETAS, EPS, MAX_PRECOND_DIM = 3e-3, (0.95, 0.95), 1e-8, 10000
# Names under which optimizers take what we set: the first that a class has is set.
ALIASES = {
    "lr": ("lr",),
    "betas": ("betas",),
    "eps": ("eps",),
    "weight_decay": ("weight_decay",),
    "precondition_frequency": ("precondition_frequency", "precond_freq", "preconditioning_steps"),
    "max_precond_dim": ("max_precond_dim", "max_precondition_dim"),
}

Params = list[torch.nn.Parameter]


def _every(optimizer: torch.optim.Optimizer, call: int, frequency: int) -> bool:
    return call % frequency == 0


def _never(optimizer: torch.optim.Optimizer, call: int, frequency: int) -> bool:
    return False


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


def _soap_options(frequency: int) -> dict[str, Any]:
    return {
        "lr": LR,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": 0.0,
        "precondition_frequency": frequency,
        "max_precond_dim": MAX_PRECOND_DIM,
    }


def build_ours(params: Params, frequency: int, backend: str | None) -> torch.optim.Optimizer:
    """ValueError for a backend that is unknown or does not run here."""
    from soap_fast import SOAP

    return SOAP(params, **_soap_options(frequency), backend=backend)


def _pytorch_optimizer(params: Params, frequency: int) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(params, **accepted(SOAP, _soap_options(frequency)))


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


def _adamw(params: Params, frequency: int, **how: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, **how)


class Oracle(torch.optim.Optimizer):
    """`tests/oracle.py` as an optimizer: tensor by tensor and mode by mode, as the paper reads."""

    def __init__(self, params: Params, frequency: int) -> None:
        sys.path.append(str(ROOT / "tests"))
        from oracle import OracleSOAP

        super().__init__(params, {})
        self.params = params
        self.oracle = OracleSOAP(params, **_soap_options(frequency))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.oracle.step([param.grad for param in self.params])
        for param, new, state in zip(
            self.params, self.oracle.params, self.oracle.states, strict=True
        ):
            param.copy_(new)
            self.state[param] = vars(state)


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
        partial(_adamw, fused=True), refreshed=_never, note="torch's, fused=True; no refreshes"
    ),
    "oracle": Peer(Oracle, note="the reference's order of work, see tests/oracle.py"),
    "heavyball_compiled": replace(
        _HEAVYBALL,
        around=partial(_heavyball_compiles, True),
        note="its default compile_mode; loading_ms has what it compiles at first, first_ms what of "
        "that a second optimizer compiles again; " + _HEAVYBALL_SET,
    ),
    "adamw_foreach": Peer(
        partial(_adamw, foreach=True), refreshed=_never, note="torch's, foreach=True"
    ),
    "adam": Peer(_adam, refreshed=_never, note="torch's with its own default implementation"),
}


# Any optimizer, with our options as far as it takes them ---------------------------------------


def optimizer_class(text: str) -> type[torch.optim.Optimizer]:
    """argparse.ArgumentTypeError where `text`, `package.module:Class`, names no optimizer."""
    found = named(text)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise argparse.ArgumentTypeError(f"{text!r} is no class of torch.optim.Optimizer")
    return found


def accepted(cls: type[torch.optim.Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """Of these options those that the class takes, by the names it has for them."""
    parameters = inspect.signature(cls).parameters
    found = {}
    for option, value in options.items():
        name = next((alias for alias in ALIASES[option] if alias in parameters), None)
        if name is not None:
            found[name] = value
    return found


def foreign_peer(name: str) -> Peer:
    """argparse.ArgumentTypeError where the name, `package.module:Class`, is of no optimizer."""
    cls = optimizer_class(name)
    given = ", ".join(accepted(cls, _soap_options(1))) or "nothing"
    return Peer(
        lambda params, frequency: cls(params, **accepted(cls, _soap_options(frequency))),
        refreshed=lambda *_: None,
        note=f"set as ours: {given}; everything else is {cls.__name__}'s own default; "
        "mean_ms is the arithmetic mean, for its refreshes are not known",
        package=_distribution(cls),
    )


def _distribution(cls: type) -> str:
    """The distribution a class is of, else its top-level package."""
    top = cls.__module__.partition(".")[0]
    try:
        importlib.metadata.distribution(top)
    except importlib.metadata.PackageNotFoundError:  # the slow way: reads every package there is
        return importlib.metadata.packages_distributions().get(top, [top])[0]
    return top


# By name ---------------------------------------------------------------------------------------


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


def refreshed(name: str, optimizer: Any, call: int, frequency: int) -> bool | None:
    """Whether the call just made, the first being 0, refreshed bases; None: nobody knows."""
    return (_every if name == OURS else peer(name).refreshed)(optimizer, call, frequency)


def origin(name: str) -> dict[str, str | None]:
    """Where an optimizer comes from, and what has to be known to read its numbers."""
    if name == OURS:
        import soap_fast

        return {"package": OURS, "version": soap_fast.__version__, "note": None}
    found = peer(name)
    return {"package": found.package, "version": found.version, "note": found.note}
