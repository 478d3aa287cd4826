"""`readme`: fill README.md with the table of result files: no number in it is typed by hand.

The section to fill stands between `<!-- from FOLDER -->` and `<!-- end of FOLDER -->`; FOLDER is
that of the results. A GPU's come first where there are some.
"""

from __future__ import annotations

import argparse
import re

from bench.command import ROOT
from bench.report import front

SECTION = re.compile(r"(<!-- from (?P<path>\S+) -->\n).*?(<!-- end of (?P=path) -->)", re.DOTALL)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")


def run(options: argparse.Namespace) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    filled = fill(text)
    if options.check:
        return int(filled != text)
    readme.write_text(filled)
    return 0


def fill(text: str) -> str:
    """The text with every section replaced by the table of its folder."""

    def section(match: re.Match[str]) -> str:
        return f"{match[1]}{front.markdown(ROOT / match['path'], ROOT)}{match[3]}"

    return SECTION.sub(section, text)
