"""Command lines that say in one line what is wrong, and types for their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A positive, finite number."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def device(text: str) -> str:
    """A torch device that works here; `auto` is cuda where there is one, else cpu."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if text.partition(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text} is not measured: take cpu or cuda")
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used here ({reason})") from None
    return text


def add_shapes(parser: argparse.ArgumentParser, default: str = "elic") -> None:
    parser.add_argument(
        "--shapes", default=default, help="inventory name or file (default: %(default)s)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="auto", help="default: cuda, else cpu")


def add_backend(parser: argparse.ArgumentParser, of: str = "of soap_fast") -> None:
    parser.add_argument("--backend", help=f"{of} (default: the best that runs here)")


def add_frequency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precondition-frequency", type=positive(int), default=10, help="default: %(default)s"
    )


def add_time_limit(parser: argparse.ArgumentParser, unit: str) -> None:
    parser.add_argument(
        "--time-limit",
        type=positive(float),
        default=180,
        metavar="SECONDS",
        help=f"for a {unit} of a peer, which may compile (default: %(default)s)",
    )
