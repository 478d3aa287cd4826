"""One page of result files: a table per file and drawings; the machine is told of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.command import BadInput
from bench.output.files import ResultFile, read
from bench.report import cost, phases, roofline
from bench.report.kinds import KINDS, SUITE, Kind
from bench.report.markdown import table


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


def page(known: Sequence[tuple[Kind, ResultFile]], out: Path) -> list[str]:
    """The page, part by part; drawings are written as they are mentioned."""
    parts = ["# Results\n"]
    for kind in (*KINDS, SUITE):
        files = [file for of, file in known if of == kind]
        if not files:
            continue
        parts.append(f"## {kind.title}\n")
        for place, file in enumerate(files, 1):
            parts.append(origin(file))
            parts.append(tables(kind, file))
            if kind.name == "scaling":
                name = "scaling.png" if len(files) == 1 else f"scaling-{place}.png"
                cost.draw(*cost.parts(file.rows), out / name)
                parts.append(f"![cost against size]({name})\n")
        if kind.name == "step":
            phases.draw(files, out / "steps.png")
            parts.append("![step time by phase](steps.png)\n")
    charts = roofline.charts(file for _, file in known)
    if charts:
        roofline.draw(charts, out / "roofline.png")
        parts.append("## Roofline\n\n![GFLOP/s over flops per byte](roofline.png)\n")
        for device in roofline.without_roofs(charts):
            parts.append(
                f"No roofs of {device} are among these: `python -m bench roof --json FILE`.\n"
            )
    return parts


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
    return table(kind.columns, [[row.get(column) for column in kind.columns] for row in file.rows])
