"""`report`: result files as one page of Markdown with drawings.

Takes what `--json` and `pytest bench/ --benchmark-json` have written, files or folders of them, and
writes report.md: a table per file, a roofline from kernels, roofs and ops, step time by phase
beside other optimizers, and cost against size. What it does not know is named and left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.command import BadInput, add_json_option, check_target, show
from bench.report.kinds import NAMES
from bench.report.page import PAGE, found, sorted_out, write

COLUMNS = ("path", "kind", "rows", "commit")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="result files, or folders of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="for report.md and drawings")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    out = Path(options.out)
    check_target(options.json)
    check_target(str(out / PAGE), "--out")
    known = sorted_out(found(options.paths))
    if not known:
        raise BadInput(f"nothing to report: results of {', '.join(NAMES)} are known")
    write(known, out)
    rows = [
        {"path": f.path, "kind": kind.name, "rows": len(f.rows), "commit": (f.commit or "")[:12]}
        for kind, f in known
    ]
    show(rows, COLUMNS, options.json)
    return 0
