"""The look of pages, tables and figures: one colour for an optimizer, one form of a number."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from tabulate import tabulate

from bench.files import write_text

LABELS = {
    "adam": "Adam (torch)",
    "adam_soap_betas": "Adam (torch), SOAP's betas",
    "soap_fast": "SOAP (soap_fast)",
    "pytorch_optimizer": "SOAP (pytorch_optimizer)",
}
LINES: dict[str, dict[str, Any]] = {
    "adam": {"color": "#7f7f7f"},
    "adam_soap_betas": {"color": "#7f7f7f", "linestyle": (0, (5, 2))},
    "soap_fast": {"color": "#d1495b", "linewidth": 2.2},
    "pytorch_optimizer": {"color": "#30638e", "linestyle": (0, (4, 2))},
}
OTHERS = ("#66a182", "#edae49", "#8d6a9f", "#00798c", "#a26769")  # of other optimizers
WIDTH = 110  # of Markdown, tables apart
DASHES = (":", "-.", (0, (6, 2)), (0, (1, 4)))  # of an optimizer's second variant, and so on


def write_page(path: Path, markdown: str) -> None:
    """A file of Markdown, whose lines of prose are filled anew where they are too long."""
    write_text(path, "\n".join(map(_filled, markdown.split("\n"))))


def _filled(line: str) -> str:
    if len(line) <= WIDTH or line.startswith(("|", "!", "#")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw text as it is: a `$` begins no formula, and a letter that no font has is a box."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def lines(variants: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """How to draw each variant, given its optimizer: the optimizer's colour, dashes of its own."""
    others = [name for name in dict.fromkeys(variants.values()) if name not in LINES]
    seen: dict[str, int] = {}
    drawn = {}
    for variant, optimizer in variants.items():
        look = LINES.get(optimizer) or {
            "color": OTHERS[others.index(optimizer) % len(OTHERS)],
        }
        before = seen.get(optimizer, 0)
        again = {"linestyle": DASHES[(before - 1) % len(DASHES)]} if before else {}
        drawn[variant] = {**look, **again}
        seen[optimizer] = before + 1
    return drawn


def frame(axes: Axes) -> None:
    """A faint grid, and no lines above and to the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def loss_frame(axes: Axes, xlabel: str) -> None:
    """For a loss, on a logarithmic scale, against what grows from zero."""
    axes.set(xlabel=xlabel)
    axes.set_xlim(left=0)
    logarithmic(axes)
    frame(axes)


def logarithmic(axes: Axes) -> None:
    """Heights, with numbers at 1, 2, 3, 5 times powers of ten."""
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1, which plain text cannot show
    axes.yaxis.set_minor_locator(NullLocator())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, with the keys of the rows as headers; values are shown as they are."""
    cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
    return str(tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True))


def _cell(value: Any) -> Any:
    return value.replace("|", r"\|") if isinstance(value, str) else value


def number(value: float | None, form: str, absent: str = "-") -> str:
    return absent if value is None else format(value, form)


def share(value: float | None, ratio: float | None, form: str, absent: str) -> str:
    """`value (ratio %)`, where there are both."""
    return absent if value is None or ratio is None else f"{value:{form}} ({ratio:.0%})"
