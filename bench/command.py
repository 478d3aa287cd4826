"""What the commands share: options, values that are checked at once, tables, and where rows go."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from bench import envelope
from bench.envelope import Row
from bench.files import BadInput, told

try:
    from tqdm import tqdm
except ImportError:  # a GPU machine for `bench device` need not have it
    tqdm = None

ROOT = Path(__file__).parent.parent  # of the clone
Item = TypeVar("Item")


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


def named(text: str) -> Any:
    """What `package.module:object` names, in the current folder too; else ArgumentTypeError."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return pkgutil.resolve_name(text)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise argparse.ArgumentTypeError(f"cannot take {text!r} ({told(error)})") from None


COMMON: dict[str, dict[str, Any]] = {
    "--shapes": {"default": "elic", "help": "inventory name or file (default: %(default)s)"},
    "--device": {"type": device, "default": "auto", "help": "default: cuda, else cpu"},
    "--backend": {"help": "of soap_fast (default: the best that runs here)"},
    "--threads": {"type": positive(int), "help": "of the CPU (default: torch's choice)"},
    "--repeats": {"type": positive(int), "default": 7, "help": "default: %(default)s"},
    "--periods": {"type": positive(int), "default": 1, "help": "of refreshes (%(default)s)"},
    "--precondition-frequency": {
        "type": positive(int), "default": 10, "help": "default: %(default)s",
    },
    "--time-limit": {
        "type": positive(float), "default": 180, "metavar": "SECONDS",
        "help": "for a call of a peer, which may compile (default: %(default)s)",
    },
    "--json": {
        "metavar": "FILE|-",
        "help": "write {command, machine, versions, commit, results} to FILE, or to standard "
        "output and nothing else there",
    },
}  # fmt: skip


def common(parser: argparse.ArgumentParser, *options: str, **defaults: Any) -> None:
    """Add these options of several commands, and `--json`."""
    for option in (*options, "--json"):
        name = option.lstrip("-")
        more = {"default": defaults[name]} if name in defaults else {}
        parser.add_argument(option, **COMMON[option] | more)


def check_target(target: str | None, option: str = "--json") -> None:
    """BadInput before a measurement, not after it, where its result cannot be written."""
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


def show(results: Sequence[Row], columns: Sequence[str], target: str | None, command: str) -> None:
    """Print a table of the rows; write them where `--json` says."""
    stream = sys.stderr if target == "-" else sys.stdout
    print(filled_table(columns, results, aligned=True), end="", file=stream)
    if target is not None:
        envelope.write(target, list(results), command)


def filled_table(columns: Sequence[str], rows: Sequence[Row], aligned: bool = False) -> str:
    """A table of those columns that a row fills."""
    filled = [c for c in columns if any(row.get(c) is not None for row in rows)]
    return table(filled, [[row.get(column) for column in filled] for row in rows], aligned)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], aligned: bool = False) -> str:
    """A table in Markdown, numbers to three digits, `-` for None; `aligned` for a terminal."""
    numbers = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*cells, strict=True)]
    marks = ["-" * max(w - n, 3) + ":" * n for w, n in zip(widths, numbers, strict=True)]
    cells.insert(1, marks)
    padded = (
        [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numbers, strict=True)]
        for line in cells
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def progress(items: Iterable[Item], what: str, unit: str = "call") -> Iterable[Item]:
    """The items, with a bar on standard error that goes away at the end."""
    return items if tqdm is None else tqdm(items, desc=what, unit=unit, leave=False)
