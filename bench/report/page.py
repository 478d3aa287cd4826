"""One page of result files: a table per file and drawings; the machine is told of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench.command import BadInput
from bench.output.files import ResultFile, read
from bench.report import cost, phases, roofline
from bench.report.kinds import KINDS, SUITE, Kind, kind_of
from bench.report.markdown import table

PAGE = "report.md"
EXACT = ("aot", "launches", "state", "gate")  # long, and the same everywhere: after what was timed


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


def sorted_out(files: Iterable[ResultFile]) -> list[tuple[Kind, ResultFile]]:
    """Files of kinds that are known; others are named."""
    known = []
    for file in files:
        kind = kind_of(file)
        if kind is None:
            print(f"{file.path}: of no kind that is known, left out", file=sys.stderr)
        else:
            known.append((kind, file))
    return known


def write(
    known: Sequence[tuple[Kind, ResultFile]],
    out: Path,
    before: str = "# Results\n",
    after: str = "",
) -> None:
    """`out`/report.md and its drawings; `before` and `after` are Markdown around the results."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([before, *page(known, out), *([after] if after else [])])
    (out / PAGE).write_text(text)


def page(known: Sequence[tuple[Kind, ResultFile]], out: Path) -> list[str]:
    """The results, part by part; drawings are written as they are mentioned."""
    parts = []
    drawings = Drawings(out)
    for kind in sorted((*KINDS, SUITE), key=lambda kind: kind.name in EXACT):
        files = [file for of, file in known if of == kind]
        if not files:
            continue
        parts.append(f"## {kind.title}\n")
        for place, file in enumerate(files, 1):
            parts += [origin(file), tables(kind, file)]
            if kind.name == "scaling":
                name = "scaling.png" if len(files) == 1 else f"scaling-{place}.png"
                points = cost.parts(file.rows)
                parts.append(drawings.add(name, "cost against size", partial(cost.draw, *points)))
        if kind.name == "step":
            draw = partial(phases.draw, files)
            parts.append(drawings.add("steps.png", "step time by phase", draw))
    charts = roofline.charts(file for _, file in known)
    if charts:
        draw = partial(roofline.draw, charts)
        title = "GFLOP/s over flops per byte"
        parts += ["## Roofline\n", drawings.add("roofline.png", title, draw)]
        parts += [
            f"No roofs of {device} are among these: `python -m bench roof --json FILE`.\n"
            for device in roofline.without_roofs(charts)
        ]
    return parts


class Drawings:
    """Of a page, in its folder; where matplotlib is missing the page says so in their place."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.possible = find_spec("matplotlib") is not None

    def add(self, name: str, title: str, draw: Callable[[Path], None]) -> str:
        if not self.possible:
            return f"Not drawn, matplotlib is not installed: {title}.\n"
        draw(self.out / name)
        return f"![{title}]({name})\n"


def origin(file: ResultFile) -> str:
    """Where the numbers were taken and of what."""
    machine = file.machine
    told = [str(machine.get("processor")), f"{machine.get('threads')} threads"]
    told += [f"{machine['gpu']}, driver {machine.get('driver')}"] if machine.get("gpu") else []
    told += [f"torch {file.versions['torch']}"] if file.versions.get("torch") else []
    told += [f"commit {file.commit[:12]}"] if file.commit else []
    return f"`{file.path}`: {', '.join(told)}\n"


def tables(kind: Kind, file: ResultFile) -> str:
    if kind.name == "scaling":
        return cost.markdown(*cost.parts(file.rows))
    if kind.name == "step":
        return phases.markdown(file.rows)
    rows = [row for row in file.rows if kind.needs <= set(row)]  # beside what they are made of
    return table(kind.columns, [[row.get(column) for column in kind.columns] for row in rows])
