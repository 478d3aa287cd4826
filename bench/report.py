"""`report`: result files as one page of Markdown with drawings.

Takes what `--json` has written, files or folders of them, and writes report.md: a table per file, a
roofline from kernels and roofs, and step time by phase beside other optimizers. Other files of a
folder are named and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import kernels, launches, refresh, roof, step, train
from bench.command import Row, check_target, common, filled_table
from bench.cost import aot
from bench.envelope import ResultFile, read
from bench.files import BadInput
from bench.roof import Roofs

COLUMNS = ("path", "command", "rows", "commit")
PAGE = "report.md"
PHASES = {"first_ms": "first call", "plain_ms": "plain", "refresh_ms": "refresh", "mean_ms": "mean"}
COLORS = ("#1f5a8a", "#c8543a", "#3a8a5c", "#8a5ca8", "#b08a2a", "#555555", "#2aa0b0")
MARKERS = "osv^DPX*"
PANEL, ACROSS = (4.6, 3.6), 3  # inches; panels in a row


# By command, what was timed first, then what is the same on every machine: titles and columns, the
# first of which every row to be shown has; without any, what has one value in a row.
SECTIONS: dict[str, tuple[str, Sequence[str]]] = {
    "roof": ("Roofs", roof.COLUMNS),
    "step": ("Steps by phase", step.COLUMNS),
    "train": ("Training steps", train.COLUMNS),
    "kernels": ("Kernels and operators", kernels.COLUMNS),
    "refresh": ("First bases and refreshes", refresh.COLUMNS),
    "lic compare": (
        "Optimizers compared on models",
        ("variant", "group", "lr", "seeds", "rd_loss", "rd_loss_spread", "steps_to_adam",
         "steps_to_adam_spread", "seconds_ratio", "step_ms", "optimizer_share"),
    ),
    "lic study": ("The paper's claims", ("claim", "measured", "too_small_for")),
    "lic demo": ("The demo", ()),
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
    files = found(options.paths)
    if not files:
        raise BadInput("nothing to report: name what --json has written")
    write(files, out)
    return [
        {"path": f.path, "command": f.command, "rows": len(f.rows), "commit": (f.commit or "")[:12]}
        for f in files
    ]


def found(paths: Sequence[str]) -> list[ResultFile]:
    """Results in these files, else BadInput, and in these folders, where all else is named."""
    files = [read(given) for given in paths if not Path(given).is_dir()]
    for path in (path for given in paths for path in sorted(Path(given).rglob("*.json"))):
        try:
            files.append(read(str(path)))
        except BadInput as problem:
            print(f"{problem}; left out", file=sys.stderr)
    for file in files:
        if not file.rows:
            print(f"{file.path} has no rows, left out", file=sys.stderr)
    return [file for file in files if file.rows]


def write(
    files: Sequence[ResultFile], out: Path, before: str = "# Results\n", after: str = ""
) -> None:
    """`out`/report.md and its drawings; `before` and `after` are Markdown around the results."""
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text("\n".join(filter(None, [before, *page(files, out), after])))


def page(files: Sequence[ResultFile], out: Path) -> list[str]:
    """The results, part by part; drawings are written as they are mentioned."""
    parts = []
    for command in dict.fromkeys((*SECTIONS, *(str(file.command) for file in files))):
        of = [file for file in files if str(file.command) == command]
        if not of:
            continue
        title, columns = SECTIONS.get(command, (f"`{command}`", ()))
        parts.append(f"## {title}\n")
        for file in of:
            rows = [row for row in file.rows if not columns or columns[0] in row]
            parts += [f"`{file.path}`:\n{file.origin}\n", filled_table(columns or _own(rows), rows)]
        if command == "step":
            parts.append(drawing("step time by phase", draw_phases, of, out / "steps.png"))
    if found := charts(files):
        title = "GFLOP/s over flops per byte"
        parts += ["## Roofline\n", drawing(title, draw_roofline, found, out / "roofline.png")]
        parts += [
            f"No roofs of {device} are among these: `python -m bench roof --json FILE`.\n"
            for device, (_, roofs) in found.items()
            if not all(roofs)
        ]
    return parts


def _own(rows: Sequence[Row]) -> list[str]:
    """What has one value in a row."""
    cells = ((name, value) for row in rows for name, value in row.items())
    return list(dict.fromkeys(n for n, value in cells if not isinstance(value, list | dict)))


def drawing(title: str, draw: Callable[[Any, Path], None], what: Any, path: Path) -> str:
    """Where matplotlib is missing the page says so in its place."""
    if find_spec("matplotlib") is None:
        return f"Not drawn, matplotlib is not installed: {title}.\n"
    draw(what, path)
    return f"![{title}]({path.name})\n"


# Drawings ----------------------------------------------------------------------------------------


def subplots(count: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels, and no display."""
    from matplotlib.figure import Figure

    across = min(count, ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for place, panel in enumerate(panels):
        panel.grid(alpha=0.3)
        panel.set_visible(place < count)
    return figure, panels[:count]


def draw_phases(files: Sequence[ResultFile], path: Path) -> None:
    """A panel per file, a group of bars per phase, a bar per optimizer."""
    from matplotlib.patches import Patch

    timed = [[row for row in file.rows if row.get("mean_ms") is not None] for file in files]
    names = list(dict.fromkeys(row["name"] for rows in timed for row in rows))
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(names)}
    figure, panels = subplots(len(files))
    for file, rows, panel in zip(files, timed, panels, strict=True):
        width = 0.8 / max(len(rows), 1)
        for place, row in enumerate(rows):
            left = -0.4 + (place + 0.5) * width
            bars = [(i + left, row[p]) for i, p in enumerate(PHASES) if row.get(p) is not None]
            panel.bar(*zip(*bars, strict=True), width, color=colors[row["name"]])
        panel.set_xticks(range(len(PHASES)), list(PHASES.values()), fontsize="small")
        where = file.machine.get("gpu") or file.machine.get("processor")
        model = rows[0].get("shapes") if rows else None
        panel.set_title(f"{model}, {where}", fontsize="medium")
        panel.set_ylabel("ms")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize="small")
    figure.savefig(path, format="png", dpi=90)


# Of one device: what, by whom, flops, bytes and seconds of each point.
Chart = tuple[list[tuple[str, str, float, float, float]], Roofs]


def charts(files: Iterable[ResultFile]) -> dict[str, Chart]:
    """By device, those that have points."""
    points: dict[str, list[Any]] = {}
    roofs: dict[str, list[Row]] = {}
    for file in files:
        for row in file.rows:
            kind = str(row.get("device") or "cpu").partition(":")[0]
            where = f"{file.machine.get('gpu' if kind == 'cuda' else 'processor')}, {kind}"
            if "roof" in row:
                roofs.setdefault(where, []).append(row)
            elif row.get("us") and row.get("flops") and row.get("bytes"):
                work = row["flops"], row["bytes"], 1e-6 * row["us"]
                points.setdefault(where, []).append((row["name"], row["by"], *work))
    return {where: (of, Roofs.of_rows(roofs.get(where, ()))) for where, of in points.items()}


def draw_roofline(found: dict[str, Chart], path: Path) -> None:
    """A panel per device: GFLOP/s over flops per byte, both axes logarithmic."""
    figure, panels = subplots(len(found))
    for (where, (points, roofs)), panel in zip(found.items(), panels, strict=True):
        groups = list(dict.fromkeys(what for what, *_ in points))
        backends = list(dict.fromkeys(by for _, by, *_ in points))
        for what, by, flops, moved, seconds in points:
            color = COLORS[groups.index(what) % len(COLORS)]
            marker = MARKERS[backends.index(by) % len(MARKERS)]
            place = flops / moved, flops / seconds / 1e9
            panel.loglog(*place, color=color, marker=marker, linestyle="", label=f"{what} {by}")
        start, end = panel.get_xlim()
        copy, products = roofs
        for number, (precision, rate) in enumerate(sorted(products.items())):
            corner = rate / copy if copy else start
            xs = sorted({start, min(max(corner, start), end), end})
            ys = [min(rate, copy * x if copy else rate) / 1e9 for x in xs]
            style = ("-", "--", ":", "-.")[number % 4]
            panel.plot(xs, ys, color="black", linestyle=style, linewidth=1, label=precision)
        panel.set(title=where, xlabel="flops per byte", ylabel="GFLOP/s")
        panel.tick_params(axis="x", which="minor", labelbottom=False)
        once = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.legend(once.values(), once.keys(), fontsize="x-small", loc="upper left",
                     bbox_to_anchor=(1.02, 1.0))  # fmt: skip
    figure.savefig(path, format="png", dpi=90)
