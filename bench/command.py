"""What the commands share: bad input as an exception, and where results go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.output import envelope, table

Row = dict[str, Any]
ROOT = Path(__file__).parent.parent  # of the clone


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what, and what to do instead."""


def told(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


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
        BadInput: the folder of `target` cannot be made, or the file not written.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise BadInput(f"{option} {target} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()  # changes nothing of what is there
        if is_new:
            path.unlink()
    except OSError as error:
        raise BadInput(f"{option} {target}: {error.strerror}; name another file") from None
