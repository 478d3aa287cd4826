"""Drawings of the report: step time by phase, and kernels and ops under a machine's roofs.

Points of a roofline come from `python -m bench kernels` and `pytest bench/`, roofs from
`python -m bench roof` on the same machine, or from what `pytest bench/` has measured along.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.envelope import ResultFile

PHASES = {
    "first_ms": "first call",
    "plain_ms": "plain",
    "refresh_ms": "with a refresh",
    "mean_ms": "mean",
}
COLORS = ("#1f5a8a", "#c8543a", "#3a8a5c", "#8a5ca8", "#b08a2a", "#555555", "#2aa0b0")
MARKERS = "osv^DPX*"
PANEL, ACROSS = (4.6, 3.6), 3  # inches; panels in a row
UNITS = {"GB/s": 1e9, "GFLOP/s": 1e9}


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


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=90)


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
    save(figure, path)


@dataclass
class Chart:
    """What belongs to one device: points, and roofs in flops and bytes per second.

    Attributes:
        points: flops, bytes and seconds by what computed and who.
    """

    points: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)
    copy: float | None = None

    def add_roof(self, name: str, rate: float) -> None:
        """Of several measurements of a roof the highest: other work only lowers it."""
        if name == "copy":
            self.copy = max(rate, self.copy or 0.0)
        elif name.startswith("gemm_"):
            precision = name.removeprefix("gemm_")
            self.products[precision] = max(rate, self.products.get(precision, 0.0))


def charts(files: Iterable[ResultFile]) -> dict[str, Chart]:
    """By device, those that have points."""
    found: dict[str, Chart] = {}
    for file in files:
        for row in file.rows:
            kind = str(row.get("device") or "cpu").partition(":")[0]
            where = file.machine.get("gpu" if kind == "cuda" else "processor")
            chart = found.setdefault(f"{where}, {kind}", Chart())
            seconds = 1e-6 * row["us"] if "us" in row else row.get("seconds")
            if "roof" in row:
                chart.add_roof(row["roof"], row["value"] * UNITS.get(row["unit"], 1.0))
            elif seconds and row.get("flops") and row.get("bytes"):
                what, by = row.get("op") or row.get("name"), row.get("backend") or row.get("by")
                chart.points.append((str(what), str(by), row["flops"], row["bytes"], seconds))
            if "roof_flops_per_second" in row:
                chart.add_roof("gemm_float32", row["roof_flops_per_second"])
                chart.add_roof("copy", row["roof_bytes_per_second"])
    return {place: chart for place, chart in found.items() if chart.points}


def draw_roofline(found: dict[str, Chart], path: Path) -> None:
    """A panel per device: GFLOP/s over flops per byte, both axes logarithmic."""
    figure, panels = subplots(len(found))
    for (where, chart), panel in zip(found.items(), panels, strict=True):
        groups = list(dict.fromkeys(what for what, *_ in chart.points))
        backends = list(dict.fromkeys(by for _, by, *_ in chart.points))
        for what, by, flops, moved, seconds in chart.points:
            color = COLORS[groups.index(what) % len(COLORS)]
            marker = MARKERS[backends.index(by) % len(MARKERS)]
            place = flops / moved, flops / seconds / 1e9
            panel.loglog(*place, color=color, marker=marker, linestyle="", label=f"{what} {by}")
        start, end = panel.get_xlim()
        for number, (precision, rate) in enumerate(sorted(chart.products.items())):
            corner = rate / chart.copy if chart.copy else start
            xs = sorted({start, min(max(corner, start), end), end})
            ys = [min(rate, chart.copy * x if chart.copy else rate) / 1e9 for x in xs]
            style = ("-", "--", ":", "-.")[number % 4]
            panel.plot(xs, ys, color="black", linestyle=style, linewidth=1, label=precision)
        panel.set(title=where, xlabel="flops per byte", ylabel="GFLOP/s")
        panel.tick_params(axis="x", which="minor", labelbottom=False)
        once = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.legend(once.values(), once.keys(), fontsize="x-small", loc="upper left",
                     bbox_to_anchor=(1.02, 1.0))  # fmt: skip
    save(figure, path)


def without_roofs(found: dict[str, Chart]) -> Sequence[str]:
    """Devices whose points stand alone."""
    return [w for w, chart in found.items() if chart.copy is None or not chart.products]
