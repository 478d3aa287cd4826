"""What the commands share: bad input as an exception, and where results go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.output import envelope, table

Row = dict[str, Any]


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what, and what to do instead."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write {machine, versions, commit, results} to FILE, or to standard output and "
        "nothing else there",
    )


def show(results: Sequence[Row], columns: Sequence[str], target: str | None) -> None:
    """Print a table of these columns, and write the whole results where `--json` says."""
    rows = [[result.get(column) for column in columns] for result in results]
    print(table.text(columns, rows), file=sys.stderr if target == "-" else sys.stdout)
    if target is not None:
        envelope.write(target, list(results))


def check_target(target: str | None, option: str = "--json") -> None:
    """Find out before a measurement, not after it, whether its result can be written.

    Raises:
        BadInput: the folder of `target` cannot be made.
    """
    if target not in (None, "-"):
        folder = Path(str(target)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{option} {target}: {error.strerror}; name another file") from None
        if Path(str(target)).is_dir():
            raise BadInput(f"{option} {target} is a folder; name a file")
