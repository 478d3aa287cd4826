"""`readme`: fill README.md with the table of result files: no number in it is typed by hand.

The section to fill stands between two comments. A GPU's results come first where there are some.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from bench.command import ROOT, table
from bench.envelope import ResultFile, Row, read
from bench.files import BadInput
from bench.report import PAGE

RESULTS = ROOT / "bench" / "results"
SECTION = re.compile(r"(<!-- from bench/results -->\n).*?(<!-- end of bench)", re.DOTALL)
ROWS = 4  # at most; README's first screen has no room for more
# By kind of step, the most telling first. A GPU's results lie below its folder, a CPU's below ours.
GPU_FILES = ("peers_elic.json", "train_elic.json")
CPU_FILES = (
    "step/elic_cpu.json", "train/elic_quarter_cpu.json",
    "step/dcae_quarter_cpu.json", "train/dcae_quarter_cpu.json",
)  # fmt: skip
COMPARED = "comparison/compare.json"
WIDTH = 110  # of Markdown
PEER = "pytorch_optimizer"
HEADER = (
    "mean time of", "model", "soap_fast, ms", "Adam, ms", "soap_fast / Adam", f"{PEER}, ms",
    f"soap_fast / {PEER}", "on",
)  # fmt: skip
WIDTHS = {0.25: "a quarter", 0.5: "half"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")


def run(options: argparse.Namespace) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    filled = SECTION.sub(lambda m: f"{m[1]}{markdown(RESULTS, ROOT)}{m[2]}", text)
    if not options.check:
        readme.write_text(filled)
    return int(options.check and filled != text)


def markdown(results: Path, root: Path) -> str:
    """The table of a folder of result files, and the machines; links are relative to `root`."""
    chosen = list(_found(results))[:ROWS]
    if not chosen:
        raise BadInput(f"{results} has none of {', '.join(CPU_FILES)}: measure them first")
    lines = [file.origin if file.machine.get("gpu") else f"CPU: {file.origin}" for file in chosen]
    lines += _state(chosen)
    for file in chosen:
        if gpu := file.machine.get("gpu"):
            page = (Path(file.path).parent / PAGE).relative_to(root).as_posix()
            lines.append(f"All results of the {gpu}: [{page}]({page})")
    lines += _steps(results / COMPARED, root)
    listed = "".join(f"{_item(line)}\n" for line in dict.fromkeys(lines))
    return f"{table(HEADER, [_cells(file) for file in chosen])}\n{listed}"


def _item(line: str) -> str:
    indents = {"initial_indent": "- ", "subsequent_indent": "  "}
    return textwrap.fill(line, WIDTH, **indents, break_long_words=False, break_on_hyphens=False)


def _steps(path: Path, root: Path) -> Iterator[str]:
    """Steps to Adam's final loss, as far as the seeds of `lic compare` tell a difference."""
    rows = read(str(path)).rows if path.exists() else []
    of_ours = ("difference", "steps_to_adam", "soap_fast")
    chosen = [
        row
        for row in rows
        if (row.get("kind"), row.get("measure"), row.get("of")) == of_ours
        and row["and"] == row["to_reach"]
    ]
    if chosen:
        page = (path.parent / PAGE).relative_to(root).as_posix()
        told = "; ".join(f"{row['group']}, {_reached(row)}" for row in chosen)
        yield f"Steps to [Adam's final loss]({page}), {chosen[0]['of_seeds'][0]} seeds: {told}"


def _reached(row: Row) -> str:
    if not row["told"]:
        return "no difference that these seeds can tell"
    ours, adams = (f"{a:.0f} ± {b:.0f}" for a, b in zip(row["means"], row["spreads"], strict=True))
    return f"soap_fast {ours}, Adam {adams}"


def _found(results: Path) -> Iterator[ResultFile]:
    """Of GPUs, each with a folder of its own, then of a CPU."""
    gpus = [path for name in GPU_FILES for path in results.glob(f"*/{name}")]
    cpus = [results / name for name in CPU_FILES]
    for path in (*sorted(gpus), *(path for path in cpus if path.exists())):
        file = read(str(path))
        if "soap_fast" in _by_name(file) and (path in cpus or file.machine.get("gpu")):
            yield file


def _by_name(file: ResultFile) -> dict[str, Row]:
    """Rows of a result by optimizer; those without a time are left out."""
    return {row["name"]: row for row in file.rows if row.get("mean_ms") is not None}


def _cells(file: ResultFile) -> list[object]:
    rows = _by_name(file)
    ours, adam = rows["soap_fast"], rows.get("adamw") or rows.get("adam")
    means = [row and row["mean_ms"] for row in (adam, rows.get(PEER))]
    compared = [cell for mean in means for cell in (mean, mean and ours["mean_ms"] / mean)]
    kind = "an optimizer step" if "shapes" in ours else "a training step"
    return [kind, _model(ours), ours["mean_ms"], *compared, file.machine.get("gpu") or "CPU"]


def _model(row: Row) -> str:
    """E.g. `elic at a quarter of its width, 2.0 M parameters, 2 crops of 128 x 128`."""
    size = f"{row['parameters'] / 1e6:.1f} M parameters"
    if "shapes" in row:
        return f"{row['shapes']}, {size}"
    name, width = row["model"], row.get("width")
    if width not in (None, 1):
        name += f" at {WIDTHS.get(width, width)} of its width"
    return f"{name}, {size}, {row['batch']} crops of {row['crop']} x {row['crop']}"


def _state(chosen: list[ResultFile]) -> Iterator[str]:
    """What the state takes beside the parameters, of the first optimizer step that tells it."""
    for rows in map(_by_name, chosen):
        ratios = [rows.get(name, {}).get("state_ratio") for name in ("soap_fast", "adamw")]
        if all(ratios):
            yield (
                f"Memory of the state of {rows['soap_fast']['shapes']}: {ratios[0]:.2f} times its "
                f"parameters', Adam's {ratios[1]:.2f} times"
            )
            return
