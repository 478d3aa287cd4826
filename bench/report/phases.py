"""Step time by phase, ours beside other optimizers: results of `python -m bench step`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.command import Row
from bench.output.files import ResultFile
from bench.report.figures import COLORS, save, subplots
from bench.report.markdown import table

PHASES = {
    "first_ms": "first call",
    "plain_ms": "plain",
    "refresh_ms": "with a refresh",
    "mean_ms": "mean",
}
MORE = ("speedup", "peak_bytes", "state_ratio", "gemm_share")


def markdown(rows: Sequence[Row]) -> str:
    """A row per optimizer and model; one that was not measured says why."""
    body = []
    for row in rows:
        why = row.get("missing") or row.get("failed")
        times = [row.get(phase) for phase in PHASES]
        body.append([row["name"], row.get("shapes"), *times, *(row.get(m) for m in MORE), why])
    header = ["optimizer", "model", *(f"{p}, ms" for p in PHASES.values()), *MORE, "not measured"]
    return table(header, body)


def draw(files: Sequence[ResultFile], path: Path) -> None:
    """A panel per model and file, a group of bars per phase, a bar per optimizer."""
    panels = [(model, file, rows) for file in files for model, rows in by_model(file.rows).items()]
    names = list(dict.fromkeys(row["name"] for _, _, rows in panels for row in rows))
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(names)}
    from matplotlib.patches import Patch

    figure, axes = subplots(len(panels))
    for (model, file, rows), panel in zip(panels, axes, strict=True):
        width = 0.8 / len(rows)
        for place, row in enumerate(rows):
            known = [(i, row[p]) for i, p in enumerate(PHASES) if row.get(p) is not None]
            lefts = [i - 0.4 + (place + 0.5) * width for i, _ in known]
            heights = [height for _, height in known]
            panel.bar(lefts, heights, width, color=colors[row["name"]])
        panel.set_xticks(range(len(PHASES)), list(PHASES.values()), fontsize="small")
        where = file.machine.get("gpu") if "cuda" in str(rows[0].get("device")) else None
        panel.set_title(f"{model}, {where or file.machine.get('processor')}", fontsize="medium")
        panel.set_ylabel("ms")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize="small")
    save(figure, path)


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with times, by what was stepped."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if any(row.get(phase) is not None for phase in PHASES):
            found.setdefault(str(row.get("shapes")), []).append(row)
    return found
