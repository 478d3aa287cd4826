"""`readme`: fill README.md with the tables of result files: no number in it is typed by hand.

A section to fill stands between `<!-- from PATH -->` and `<!-- end of PATH -->`. PATH is a Markdown
file that a measurement has written, or a pattern of results of `step --peers`, of which a table of
what a step costs is made; or a pattern of `parts.json`, of folders that `device` has left, which
may be none; or the module that holds the parts of `device`, which are listed.
"""

from __future__ import annotations

import argparse
import re

from bench.command import ROOT, BadInput
from bench.device import parts
from bench.device.ledger import FILE as PARTS
from bench.output.files import read
from bench.report import gpus, prices

PLAN = "bench/device/parts.py"
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
    """The text with every section replaced by what it names."""

    def section(match: re.Match[str]) -> str:
        if match["path"] == PLAN:
            return f"{match[1]}{parts.markdown()}{match[3]}"
        paths = sorted(ROOT.glob(match["path"]))
        if match["path"].endswith(PARTS):
            return f"{match[1]}{gpus.markdown(paths, ROOT)}{match[3]}"
        if not paths:
            raise BadInput(f"README.md wants {match['path']}, which is not there: measure it first")
        if match["path"].endswith(".json"):
            made = prices.markdown([read(str(path)) for path in paths])
        else:
            made = "".join(path.read_text() for path in paths)
        return f"{match[1]}{made}{match[3]}"

    return SECTION.sub(section, text)
