"""`device`: everything that a GPU machine is asked, in two calls of the same command.

Each part is a command of its own with a time limit, the most important first. A call ends within
390 seconds: a part that does not fit into what is left of it is not begun. A part is done once its
result is in the folder, which belongs to a commit: the same command goes on from there, and what
has failed comes last. Needs triton, pytest (with pytest-xdist it runs several tests at a time) and
the built extension; peers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from bench import envelope, report
from bench.command import ROOT, Row, common, filled_table, show
from bench.files import BadInput
from soap_fast import extension

COLUMNS = ("part", "limit_s", "status", "message")
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
PRINTED = 60  # lines of what a part has printed, in the report
PYTHON = "python"  # the one that runs us, without its path: commands go into reports
# Known before a part that takes too long is cut off.
FIRST = ("tests/test_gpu_traces", "tests/ops/test_", "tests/test_gpu_workspace")
GPU_TESTS = ("tests/test_gpu*.py", "tests/ops/test_*.py")
PROCESSES = 7  # of tests, which wait for the host more than for the GPU
LIMIT_OF_ALL = 780  # seconds: two calls are to suffice, of 390 each
TIME_FOR_PARTS = 370  # of a call: torch is loaded before the first part, a report drawn at the end
# As the models' authors train, in float32; a step's mean is over one refresh period.
TRAIN = "train --backend triton --batch 8 --crop 256 --periods 1 --model"
STEP = "step --backend triton --shapes"
# Peers get less than their part: what they do must not cost our own numbers.
PEERS = "--peers pytorch_optimizer,heavyball,adamw,adamw_foreach --time-limit 15 --budget 30"
MEASURED = (
    ("roof", 20, "roof"),
    ("step_elic", 40, f"{STEP} elic --periods 3"),
    ("step_tcm_128", 40, f"{STEP} tcm_128 --periods 3"),
    ("step_lalic", 45, f"{STEP} lalic --periods 3"),
    ("step_dcae", 50, f"{STEP} dcae --periods 3"),
    ("kernels_elic", 25, "kernels --shapes elic"),
    ("kernels_dcae", 40, "kernels --shapes dcae"),
    ("train_elic", 45, f"{TRAIN} elic"),
    ("train_tcm_128", 55, f"{TRAIN} tcm_128"),
    ("train_lalic", 60, f"{TRAIN} lalic"),
    ("train_dcae", 60, f"{TRAIN} dcae"),
    ("refresh_elic", 35, "refresh --shapes elic"),
    ("peers_elic", 50, f"{STEP} elic --periods 2 {PEERS}"),
    ("graphs_elic", 25, "step --shapes elic --graphed --periods 3"),
)


class Part(NamedTuple):
    """A command line; `{out}` in it stands for the path of its result; `limit` is in seconds."""

    name: str
    command: tuple[str, ...]
    limit: float

    @property
    def result(self) -> str:
        """A file that it writes, or what it prints."""
        return f"{self.name}.{'json' if '{out}' in self.command else 'txt'}"


def parts() -> list[Part]:
    """The most important first, for a call may be the last; the limits add up to LIMIT_OF_ALL."""
    found = (path for pattern in GPU_TESTS for path in ROOT.glob(pattern))
    files = sorted(path.relative_to(ROOT).as_posix() for path in found)
    files.sort(key=lambda name: not name.startswith(FIRST))
    more = ("-n", str(min(PROCESSES, os.cpu_count() or 1))) if find_spec("xdist") else ()
    # Each test is printed as it ends: one that is cut off says how far it came.
    tests = ("-m", "pytest", "-v", "--tb=short", "--maxfail=20", *more, *files)
    on = ("--device", "cuda", "--json", "{out}")
    return [
        Part("install", (PYTHON, "-m", "soap_fast", "--json"), 45),  # compiling included
        Part("tests", (PYTHON, *tests), 105),
        *(Part(n, (PYTHON, "-m", "bench", *line.split(), *on), s) for n, s, line in MEASURED),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    common(parser)
    add("--out", metavar="DIR", help="default: bench/results/ and the name of the GPU")
    names = [part.name for part in parts()]
    only = f"these of {', '.join(names)}, also where they are done"
    add("--only", nargs="+", metavar="PART", choices=names, help=only)
    add("--dry-run", action="store_true", help="list the parts, their limits and what is done")


def run(options: argparse.Namespace) -> list[Row] | int:
    chosen = parts()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    slug = re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")
    folder = Path(options.out or ROOT / "bench" / "results" / slug).absolute()
    if options.dry_run:
        return _states(chosen, folder)
    _check_machine()
    _check_folder(folder)
    # The untried first, for one that failed may fail again.
    order = [p for s in (NOT_RUN, FAILED) for p in chosen if _status(p, folder) == s]
    left = [part for part in chosen if part.name in (options.only or ())] or order
    try:
        _take(left, folder)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130  # as shells expect
    finally:
        _write_report(folder, chosen)
    show(_states(chosen, folder), COLUMNS, options.json, "device")
    print(folder / report.PAGE, file=sys.stderr)
    return int(any(_status(part, folder) != DONE for part in chosen))


def _check_machine() -> None:
    if not torch.cuda.is_available():
        raise BadInput(
            "torch sees no NVIDIA GPU: run this on a machine with one; --dry-run lists what it does"
        )
    for name in ("triton", "pytest"):
        if not find_spec(name):
            raise BadInput(f"{name} is not installed: pip install {name}")
    if missing := extension.missing_cuda():
        raise BadInput(missing)


def _check_folder(folder: Path) -> None:
    """BadInput where it cannot be made or is of another commit; results that are kept are none."""
    here = (envelope.commit() or "").partition("+")[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "commit"
        if mark.exists() and mark.read_text() != here:
            raise BadInput(f"--out {folder} is of commit {mark.read_text()}: name another folder")
        mark.write_text(here)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None


# Results are files -----------------------------------------------------------------------------


def _status(part: Part, folder: Path) -> str:
    if (folder / f"{part.name}.failed").exists():
        return FAILED
    return DONE if (folder / part.result).exists() else NOT_RUN


def _take(left: list[Part], folder: Path) -> None:
    """Part after part; what does not fit into what is left of this call waits for the next."""
    end, waiting = time.monotonic() + TIME_FOR_PARTS, []
    for number, part in enumerate(left, 1):
        if number > 1 and part.limit > end - time.monotonic():
            waiting.append(part.name)
            continue
        print(f"{number}/{len(left)} {part.name}, at most {part.limit:g} s", file=sys.stderr)
        _run(part, folder)
    if waiting:
        names = ", ".join(waiting)
        print(f"for the next call, the same command goes on: {names}", file=sys.stderr)


def _run(part: Part, folder: Path) -> None:
    """Leave its result, named only once it is whole, or why it failed and what it printed."""
    new, printed, failed = (folder / f"{part.name}.{end}" for end in ("new", "printed", "failed"))
    new.unlink(missing_ok=True)
    paths = {PYTHON: sys.executable, "{out}": str(new)}
    # It ends all that the part has started, also where we are killed ourselves.
    command = ["timeout", "--kill-after=2", f"{part.limit:g}", *part.command]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [paths.get(word, word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait()
        finally:  # what it has started may go on when it has ended, or when we are interrupted
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    result = printed if part.result.endswith(".txt") else new
    if code == 0 and result.exists():
        result.replace(folder / part.result)
        failed.unlink(missing_ok=True)
        return
    text = printed.read_text(errors="replace").rstrip()
    cut_off = code in (124, -signal.SIGKILL, 128 + signal.SIGKILL)
    last = text.rpartition("\n")[2].strip()
    why = f"took longer than {part.limit:g} s" if cut_off else f"exit code {code}: {last}"
    failed.write_text(f"{why}\n{text}")


def _states(chosen: Sequence[Part], folder: Path) -> list[Row]:
    """A row per part, and one for all."""
    rows: list[Row] = [
        {"part": part.name, "limit_s": part.limit, "status": _status(part, folder)}
        for part in chosen
    ]
    for row in rows:
        if row["status"] == FAILED:
            row["message"] = (folder / f"{row['part']}.failed").read_text().partition("\n")[0]
    return [*rows, {"part": "all", "limit_s": sum(part.limit for part in chosen)}]


def _write_report(folder: Path, chosen: Sequence[Part]) -> None:
    """The page of the results, before it what became of each part, after it what others printed."""
    facts = ", ".join(f"{name} {value}" for name, value in envelope.machine().items() if value)
    states = filled_table(COLUMNS, _states(chosen, folder))
    files, printed = [], []
    for part in chosen:
        status = _status(part, folder)
        path = folder / (f"{part.name}.failed" if status == FAILED else part.result)
        if path.suffix == ".json" and status == DONE:  # by name: a page has no paths of a machine
            files.append(replace(envelope.read(str(path)), path=path.name))
        elif status != NOT_RUN:
            lines = path.read_text(errors="replace").rstrip().splitlines()
            last = "\n".join([f"The end of {path.name}:", "", *lines[-PRINTED:]])
            printed.append(f"## {part.name}\n\n`{' '.join(part.command)}`\n\n```\n{last}\n```\n")
    report.write(files, folder, f"# {facts}\n\n{states}", "\n".join(printed))
