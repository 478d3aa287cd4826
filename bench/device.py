"""`device`: everything that a GPU machine is asked, in two calls of the same command.

Checks the install, runs the tests of GPUs, then measures roofs, steps, kernels, training,
refreshes, steps beside peers and CUDA graphs, the most important first. Each part is a command of
its own with a time limit. A call ends within 390 seconds: a part that does not fit into what is
left of it is not begun. A part is done once its result is in the folder, which belongs to a commit:
the same command goes on from there, and what has failed comes last. Needs torch, triton, the built
extension and pytest, of which pytest-xdist runs several tests at a time; peers that are not
installed are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from bench import envelope, report
from bench.command import ROOT, Row, common, show, table
from bench.files import BadInput
from soap_fast import extension

COLUMNS = ("part", "limit_s", "status", "message")
INTERRUPTED = 130  # what a shell expects after Ctrl-C
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
PRINTED = 60  # lines of what a part has printed, in the report
PYTHON = "python"  # the one that runs us, without its path: commands go into reports
# What matters most is known before a part that takes too long is cut off.
FIRST = ("tests/test_gpu_traces", "tests/ops/test_", "tests/test_gpu_workspace")
GPU_TESTS = ("tests/test_gpu*.py", "tests/ops/test_*.py")
PEERS = "pytorch_optimizer,heavyball,adamw,adamw_foreach"
PROCESSES = 7  # of tests, which wait for the host more than for the GPU
# As the models' authors train, in float32; a step's mean is over one refresh period.
AS_PUBLISHED = ("--batch", "8", "--crop", "256", "--periods", "1")
# Seconds of `python -m bench device`, two calls of which are to suffice.
LIMIT_OF_ALL, LIMIT_OF_A_CALL = 780, 390
BESIDE_PARTS = 20  # of a call: torch is loaded before the first part, a report drawn after the last
TIME_FOR_PARTS = LIMIT_OF_A_CALL - BESIDE_PARTS


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
    xdist = importlib.util.find_spec("xdist") is not None
    more = ("-n", str(min(PROCESSES, os.cpu_count() or 1))) if xdist else ()
    # Each test is printed as it ends: one that is cut off says how far it came.
    tests = ("pytest", "-v", "--tb=short", "--maxfail=20", *more, *files)
    return [
        Part("install", (PYTHON, "-m", "soap_fast", "--json"), 45),  # compiling included
        Part("tests", (PYTHON, "-m", *tests), 105),
        *_measurements(),
    ]


def _part(name: str, limit: float, *command: str) -> Part:
    return Part(name, (PYTHON, "-m", "bench", *command, "--json", "{out}"), limit)


def _measurements() -> Iterator[Part]:
    on = ("--device", "cuda")
    triton = (*on, "--backend", "triton")
    yield _part("roof", 20, "roof", *on)
    for model, limit in (("elic", 40), ("tcm_128", 40), ("lalic", 45), ("dcae", 50)):
        yield _part(f"step_{model}", limit, "step", "--shapes", model, *triton, "--periods", "3")
    for model, limit in (("elic", 25), ("dcae", 40)):
        yield _part(f"kernels_{model}", limit, "kernels", "--shapes", model, *on)
    for model, limit in (("elic", 45), ("tcm_128", 55), ("lalic", 60), ("dcae", 60)):
        yield _part(f"train_{model}", limit, "train", "--model", model, *triton, *AS_PUBLISHED)
    elic = ("--shapes", "elic")
    yield _part("refresh_elic", 35, "refresh", *elic, *on)
    # Peers get less than the part: what they do must not cost our own numbers.
    limits = ("--periods", "2", "--time-limit", "15", "--budget", "30")
    yield _part("peers_elic", 50, "step", *elic, *triton, "--peers", PEERS, *limits)
    yield _part("graphs_elic", 25, "step", *elic, *on, "--graphed", "--periods", "3")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    common(parser)
    add("--out", metavar="DIR", help="default: bench/results/ and the name of the GPU")
    add("--only", nargs="+", metavar="PART", help="these parts, also where they are done")
    add("--dry-run", action="store_true", help="list the parts, their limits and what is done")


def run(options: argparse.Namespace) -> list[Row] | int:
    chosen = parts()
    names = [part.name for part in chosen]
    if unknown := [name for name in options.only or () if name not in names]:
        raise BadInput(f"no part {unknown[0]!r}: take {', '.join(names)}")
    folder = (Path(options.out) if options.out else ROOT / "bench/results" / _slug()).absolute()
    if options.dry_run:
        return _states(chosen, folder)
    _check_machine()
    _check_folder(folder)
    left = [part for part in chosen if part.name in (options.only or ())] or _left(chosen, folder)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part as well
    try:
        _take(left, folder)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        _write_report(folder, chosen)
    show(_states(chosen, folder), COLUMNS, options.json, "device")
    print(folder / report.PAGE, file=sys.stderr)
    return int(any(_status(part, folder) != DONE for part in chosen))


def _check_machine() -> None:
    """One line that says what is missing, and how to get it."""
    if not torch.cuda.is_available():
        raise BadInput(
            "torch sees no NVIDIA GPU: run this on a machine with one; --dry-run lists what it does"
        )
    for name in ("triton", "pytest"):
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"{name} is not installed: pip install {name}")
    if not extension.available():
        raise BadInput(f"the extension is missing: {extension.reason()}")
    if not (extension.build_info() or {}).get("cuda"):
        raise BadInput("the extension was built without CUDA: SOAP_FAST_CUDA=ON pip install .")


def _check_folder(folder: Path) -> None:
    """Results of one commit; that results are kept in the clone while they are taken is no other.

    Raises:
        BadInput: the folder cannot be made, or is of another commit.
    """
    here = (envelope.commit() or "").partition("+")[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "commit"
        if mark.exists() and mark.read_text() != here:
            raise BadInput(f"--out {folder} is of commit {mark.read_text()}: name another folder")
        mark.write_text(here)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None


def _slug() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


# Results are files -----------------------------------------------------------------------------


def _status(part: Part, folder: Path) -> str:
    if (folder / f"{part.name}.failed").exists():
        return FAILED
    return DONE if (folder / part.result).exists() else NOT_RUN


def _left(chosen: Sequence[Part], folder: Path) -> list[Part]:
    """Those that are not done: the untried first, for one that failed may fail again."""
    return [p for status in (NOT_RUN, FAILED) for p in chosen if _status(p, folder) == status]


def _take(left: list[Part], folder: Path) -> None:
    """Part after part; what does not fit into what is left of this call waits for the next."""
    end, waiting = time.monotonic() + TIME_FOR_PARTS, []
    for number, part in enumerate(left, 1):
        if number > 1 and part.limit > end - time.monotonic():
            waiting.append(part.name)
            continue
        print(f"{number}/{len(left)} {part.name}, at most {part.limit:g} s", file=sys.stderr)
        failed = folder / f"{part.name}.failed"
        problem = _run(part, folder)
        failed.unlink(missing_ok=True)
        if problem is not None:
            failed.write_text(problem)
    if waiting:
        names = ", ".join(waiting)
        print(f"for the next call, the same command goes on: {names}", file=sys.stderr)


def _run(part: Part, folder: Path) -> str | None:
    """Why a part has failed, and what it printed; its result gets its name only once it is whole.

    `timeout` ends it with all that it has started, also where we are killed ourselves.
    """
    new, printed = folder / f"{part.name}.new", folder / f"{part.name}.printed"
    new.unlink(missing_ok=True)
    paths = {PYTHON: sys.executable, "{out}": str(new)}
    command = ["timeout", "--kill-after=2", f"{part.limit:g}", *part.command]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [paths.get(word, word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait()
        finally:  # what it has started may go on when it has ended
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    result = printed if part.result.endswith(".txt") else new
    if code == 0 and result.exists():
        result.replace(folder / part.result)
        return None
    text = printed.read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    cut_off = code in (124, -signal.SIGKILL, 128 + signal.SIGKILL)
    why = f"took longer than {part.limit:g} s" if cut_off else f"exit code {code}: {last.strip()}"
    return f"{why}\n{text}"


def _states(chosen: Sequence[Part], folder: Path) -> list[Row]:
    """A row per part, and one for all."""
    rows: list[Row] = []
    for part in chosen:
        failed = folder / f"{part.name}.failed"
        message = failed.read_text().partition("\n")[0] if failed.exists() else None
        row = {"part": part.name, "limit_s": part.limit, "status": _status(part, folder)}
        rows.append({**row, "message": message})
    return [*rows, {"part": "all", "limit_s": sum(part.limit for part in chosen)}]


def _write_report(folder: Path, chosen: Sequence[Part]) -> None:
    """The page of the results, before it what became of each part, after it what others printed."""
    facts = ", ".join(f"{name} {value}" for name, value in envelope.machine().items() if value)
    rows = [[row.get(column) for column in COLUMNS] for row in _states(chosen, folder)]
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
    report.write(files, folder, f"# {facts}\n\n{table(COLUMNS, rows)}", "\n".join(printed))
