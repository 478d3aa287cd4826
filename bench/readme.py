"""`readme`: fill README.md with the table of result files: no number in it is typed by hand.

The section to fill stands between `<!-- from FOLDER -->` and `<!-- end of FOLDER -->`; FOLDER is
that of the results. A GPU's come first where there are some.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.command import ROOT, table
from bench.envelope import ResultFile, Row, read
from bench.files import BadInput
from bench.report import PAGE

SECTION = re.compile(r"(<!-- from (?P<path>\S+) -->\n).*?(<!-- end of (?P=path) -->)", re.DOTALL)
ROWS = 4  # at most; README's first screen has no room for more
# By kind of step, the most telling first. A GPU's results lie below its folder, a CPU's below ours.
GPU_FILES = ("peers_elic.json", "train_elic.json")
CPU_FILES = (
    "step/elic_cpu.json",
    "train/elic_quarter_cpu.json",
    "step/dcae_quarter_cpu.json",
    "train/dcae_quarter_cpu.json",
)
ADAMS = ("adamw", "adam")  # of `step --peers adamw`; of `train`, whose baseline it is
PEER = "pytorch_optimizer"
HEADER = (
    "mean time of",
    "model",
    "soap_fast, ms",
    "Adam, ms",
    "soap_fast / Adam",
    f"{PEER}, ms",
    f"soap_fast / {PEER}",
    "on",
)
PACKAGES = ("torch", PEER)
EXPLAINED = """\
Means over a refresh period, its refresh included; the optimizers take turns. A training step is
forward, backward and optimizer. Adam is torch's, in optimizer steps its AdamW with `fused=True`.
"""
WIDTHS = {0.25: "a quarter", 0.5: "half"}


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
        return f"{match[1]}{markdown(ROOT / match['path'], ROOT)}{match[3]}"

    return SECTION.sub(section, text)


class Found(NamedTuple):
    """A result and where it was taken: a GPU's name, or `CPU`."""

    file: ResultFile
    place: str


def markdown(results: Path, root: Path) -> str:
    """The table with at most ROWS rows, what its words mean, and the machines.

    Args:
        results: folder of result files, as bench/results.
        root: of the clone; links are relative to it.

    Raises:
        BadInput: no result is there.
    """
    chosen = list(_found(results))[:ROWS]
    if not chosen:
        raise BadInput(f"{results} has none of {', '.join(CPU_FILES)}: measure them first")
    cells = [_cells(one) for one in chosen]
    machines = "".join(f"- {line}\n" for line in dict.fromkeys(_machine(one) for one in chosen))
    pages = "".join(f"- {link}\n" for link in _pages(chosen, root))
    return f"{table(HEADER, cells)}\n{EXPLAINED}\n{machines}{_state(chosen)}{pages}"


def _found(results: Path) -> Iterator[Found]:
    """Of GPUs, each with a folder of its own, then of a CPU."""
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        for path in (folder / name for name in GPU_FILES):
            gpu = path.exists() and read(str(path)).machine.get("gpu")
            if gpu and "soap_fast" in _by_name(file := read(str(path))):
                yield Found(file, gpu)
    for path in (results / name for name in CPU_FILES):
        if path.exists() and "soap_fast" in _by_name(file := read(str(path))):
            yield Found(file, "CPU")


def _by_name(file: ResultFile) -> dict[str, Row]:
    """Rows of a result by optimizer; those without a time are left out."""
    return {row["name"]: row for row in file.rows if row.get("mean_ms") is not None}


def _cells(found: Found) -> list[object]:
    rows = _by_name(found.file)
    ours = rows["soap_fast"]
    others = [_mean(rows, ADAMS), _mean(rows, (PEER,))]
    compared = [cell for mean in others for cell in (mean, mean and ours["mean_ms"] / mean)]
    is_step = "shapes" in ours
    kind = "an optimizer step" if is_step else "a training step"
    return [kind, _model(ours), ours["mean_ms"], *compared, found.place]


def _mean(rows: dict[str, Row], names: Sequence[str]) -> float | None:
    return next((rows[name]["mean_ms"] for name in names if name in rows), None)


def _model(row: Row) -> str:
    """E.g. `elic at a quarter of its width, 2.0 M parameters, 2 crops of 128 x 128`."""
    size = f"{row['parameters'] / 1e6:.1f} M parameters"
    if "shapes" in row:
        return f"{row['shapes']}, {size}"
    name, width = row["model"], row.get("width")
    if width not in (None, 1):
        name += f" at {WIDTHS.get(width, width)} of its width"
    return f"{name}, {size}, {row['batch']} crops of {row['crop']} x {row['crop']}"


def _machine(found: Found) -> str:
    file = found.file
    about = file.machine
    if found.place == "CPU":
        told = f"CPU: {about.get('processor')}, {about.get('threads')} threads"
    else:
        told = f"{found.place}, driver {about.get('driver')}"
    versions = [f"{name} {v}" for name in PACKAGES if (v := file.versions.get(name))]
    return ", ".join([told, *versions, f"commit {(file.commit or '?')[:10]}"])


def _state(chosen: Sequence[Found]) -> str:
    """What the state takes beside the parameters, of the first optimizer step that tells it."""
    for one in chosen:
        rows = _by_name(one.file)
        ratios = {name: row["state_ratio"] for name, row in rows.items() if row.get("state_ratio")}
        if {"soap_fast", "adamw"} <= set(ratios):
            return (
                f"- Memory of the state of {rows['soap_fast']['shapes']}: "
                f"{ratios['soap_fast']:.2f} times its parameters', Adam's {ratios['adamw']:.2f} "
                "times\n"
            )
    return ""


def _pages(chosen: Sequence[Found], root: Path) -> list[str]:
    """Links to the reports of GPUs."""
    found = {one.place: Path(one.file.path).parent / PAGE for one in chosen if one.place != "CPU"}
    links = {gpu: page.relative_to(root).as_posix() for gpu, page in found.items()}
    return [f"All results of the {gpu}: [{page}]({page})" for gpu, page in links.items()]
