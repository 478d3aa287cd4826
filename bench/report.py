"""`report`: result files as one page of Markdown with drawings.

Takes what `--json` and `pytest bench/ --benchmark-json` have written, files or folders of them, and
writes report.md: a table per file, a roofline from kernels, roofs and ops, and step time by phase
beside other optimizers. What it does not know is named and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench import figures, kernels, launches, refresh, roof, sharing, step, train
from bench.command import Row, check_target, common, table
from bench.cost import aot
from bench.envelope import ResultFile, read
from bench.files import BadInput

COLUMNS = ("path", "command", "rows", "commit")
PAGE = "report.md"


# By command, what was timed first, then what is the same on every machine: titles and columns. The
# first column is one that every row to be shown has.
SECTIONS: dict[str, tuple[str, Sequence[str]]] = {
    "roof": ("Roofs", roof.COLUMNS),
    "step": ("Steps by phase", step.COLUMNS),
    "train": ("Training steps", train.COLUMNS),
    "kernels": ("Kernels and operators", kernels.COLUMNS),
    "refresh": ("First bases and refreshes", refresh.COLUMNS),
    "sharing": ("Refreshes that processes share", sharing.COLUMNS),
    "scaling": (
        "Cost against size",
        ("sweep", "x", "threads", *figures.PHASES, "metric", "exponent", "stderr"),
    ),
    "pytest bench/": (
        "Ops, by pytest-benchmark",
        ("op", "shapes", "backend", "device", "seconds", "flops", "bytes", "share_of_roof"),
    ),
    "lic compare": (
        "Optimizers compared on models",
        ("variant", "group", "lr", "rd_loss", "rd_loss_spread", "steps_ratio", "seconds_ratio",
         "step_ms", "optimizer_share"),
    ),
    "lic study": ("The paper's claims", ("claim", "measured", "too_small_for")),
    "lic demo": (
        "The demo",
        ("optimizer", "lr", "steps", "rd_loss", "bpp", "psnr", "step_ms", "optimizer_ms",
         "optimizer_share"),
    ),
    "kernels --aot": ("Kernels, compiled ahead of time", aot.COLUMNS),
    "launches": ("Launches of the models", launches.COLUMNS),
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="result files, or folders of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="for report.md and drawings")


def run(options: argparse.Namespace) -> list[Row]:
    out = Path(options.out)
    check_target(str(out / PAGE), "--out")
    files = known(found(options.paths))
    if not files:
        raise BadInput(f"nothing to report: results of {', '.join(SECTIONS)} are known")
    write(files, out)
    return [
        {"path": f.path, "command": f.command, "rows": len(f.rows), "commit": (f.commit or "")[:12]}
        for f in files
    ]


def found(paths: Sequence[str]) -> list[ResultFile]:
    """Every result of these files and folders; what of a folder is none is named.

    Raises:
        BadInput: a path is not there, or a file is no result.
    """
    files = []
    for given in paths:
        if not Path(given).is_dir():
            files.append(read(given))
            continue
        for path in sorted(Path(given).rglob("*.json")):
            try:
                files.append(read(str(path)))
            except BadInput as problem:
                print(f"{problem}; left out", file=sys.stderr)
    return files


def known(files: Iterable[ResultFile]) -> list[ResultFile]:
    """Results of commands that are known; others are named."""
    kept = []
    for file in files:
        if file.command in SECTIONS and file.rows:
            kept.append(file)
        else:
            print(f"{file.path}: of no command that is known, left out", file=sys.stderr)
    return kept


def write(
    files: Sequence[ResultFile], out: Path, before: str = "# Results\n", after: str = ""
) -> None:
    """`out`/report.md and its drawings; `before` and `after` are Markdown around the results."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([before, *page(files, out), *([after] if after else [])])
    (out / PAGE).write_text(text)


def page(files: Sequence[ResultFile], out: Path) -> list[str]:
    """The results, part by part; drawings are written as they are mentioned."""
    parts = []
    for command, (title, columns) in SECTIONS.items():
        of = [file for file in files if file.command == command]
        if not of:
            continue
        parts.append(f"## {title}\n")
        for file in of:
            rows = [row for row in file.rows if columns[0] in row]
            filled = [c for c in columns if any(row.get(c) is not None for row in rows)]
            parts += [origin(file), table(filled, [[row.get(c) for c in filled] for row in rows])]
        if command == "step":
            draw = partial(figures.draw_phases, of)
            parts.append(drawing(out, "steps.png", "step time by phase", draw))
    charts = figures.charts(files)
    if charts:
        draw = partial(figures.draw_roofline, charts)
        title = "GFLOP/s over flops per byte"
        parts += ["## Roofline\n", drawing(out, "roofline.png", title, draw)]
        parts += [
            f"No roofs of {device} are among these: `python -m bench roof --json FILE`.\n"
            for device in figures.without_roofs(charts)
        ]
    return parts


def drawing(out: Path, name: str, title: str, draw: Callable[[Path], None]) -> str:
    """Where matplotlib is missing the page says so in its place."""
    if find_spec("matplotlib") is None:
        return f"Not drawn, matplotlib is not installed: {title}.\n"
    draw(out / name)
    return f"![{title}]({name})\n"


def origin(file: ResultFile) -> str:
    """Where the numbers were taken and of what."""
    machine = file.machine
    told = [str(machine.get("processor")), f"{machine.get('threads')} threads"]
    told += [f"{machine['gpu']}, driver {machine.get('driver')}"] if machine.get("gpu") else []
    told += [f"torch {file.versions['torch']}"] if file.versions.get("torch") else []
    told += [f"commit {file.commit[:12]}"] if file.commit else []
    return f"`{file.path}`: {', '.join(told)}\n"
