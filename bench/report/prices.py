"""What a step costs beside other optimizers: a table of results of `bench step --peers`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.command import Row
from bench.output.files import ResultFile
from bench.report.markdown import table

# What the mean of a step is divided by, and how that is said.
BASES = {"adamw": "over AdamW", "pytorch_optimizer": "over pytorch_optimizer"}
HEADER = (
    "model",
    "optimizer",
    "mean, ms",
    *BASES.values(),
    "plain, ms",
    "with a refresh, ms",
    "MB",
)
PACKAGES = ("torch", "pytorch_optimizer", "heavyball")
EXPLAINED = (
    "`mean` is over a refresh period; all optimizers take turns on the same gradients. `MB` is "
    "what a step needs at its peak beside parameters and gradients. Taken on:"
)


def markdown(files: Sequence[ResultFile]) -> str:
    """A table with the rows of all files, the smallest model first, and where they were taken."""
    by_size = sorted(files, key=_parameters)
    body = [cells for file in by_size for cells in _rows(file)]
    places = "\n".join(f"- {line}" for line in dict.fromkeys(map(_place, by_size)))
    return f"{table(HEADER, body)}\n{EXPLAINED}\n\n{places}\n"


def _parameters(file: ResultFile) -> int:
    return max((row.get("parameters", 0) for row in file.rows), default=0)


def _rows(file: ResultFile) -> Iterator[list[object]]:
    means = {row["name"]: row.get("mean_ms") for row in file.rows}
    for place, row in enumerate(row for row in file.rows if row.get("mean_ms") is not None):
        over = [row["mean_ms"] / base if (base := means.get(name)) else None for name in BASES]
        peak = row.get("peak_bytes")
        yield [
            _model(row) if place == 0 else "",
            row["name"],
            _ms(row["mean_ms"]),
            *over,
            _ms(row["plain_ms"]),
            _ms(row["refresh_ms"]),
            None if peak is None else round(peak / 1e6),
        ]


def _ms(value: float | None) -> float | int | None:
    """Whole milliseconds where there are many."""
    return value if value is None or value < 100 else round(value)


def _model(row: Row) -> str:
    """E.g. `elic, 32.1 M in 187 tensors`."""
    return f"{row['shapes']}, {row['parameters'] / 1e6:.1f} M in {row['tensors']} tensors"


def _place(file: ResultFile) -> str:
    """The machine and versions, and which of the peers were not there or could not step."""
    models = {row["shapes"] for row in file.rows if "shapes" in row}
    versions = ", ".join(f"{name} {v}" for name in PACKAGES if (v := file.versions.get(name)))
    told = f"{', '.join(sorted(models))}: {file.machine.get('processor')}, "
    told += f"{file.machine.get('threads')} threads, {versions}, commit {(file.commit or '?')[:10]}"
    told += "".join(f", a refresh every {n} steps" for n in _frequencies(file))
    absent = [row["name"] for row in file.rows if row.get("mean_ms") is None]
    return f"{told}; not measured: {', '.join(absent)}" if absent else told


def _frequencies(file: ResultFile) -> list[int]:
    return sorted({row["precondition_frequency"] for row in file.rows if "shapes" in row})
