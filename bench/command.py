"""What the commands of `python -m bench` share: one-line errors, exit codes, where output goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tabulate import tabulate

from bench import envelope

Row = dict[str, Any]


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what, and what to do instead."""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for `add_argument`: a positive, finite number."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write {machine, versions, commit, results} to FILE, or to standard output and "
        "nothing else there",
    )


def show(results: Sequence[Row], columns: Sequence[str], target: str | None) -> None:
    """Print a table of these columns, and write the whole results where `--json` says."""
    table = tabulate(
        [[result.get(column) for column in columns] for result in results],
        headers=columns,
        floatfmt=".3g",
        missingval="-",
    )
    print(table, file=sys.stderr if target == "-" else sys.stdout)
    if target is not None:
        envelope.write(target, list(results))
