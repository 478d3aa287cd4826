"""`device`: everything that a GPU machine is asked, in two calls of the same command.

Checks the install, runs the tests of GPUs, then measures roofs, steps, kernels, training,
refreshes, steps beside peers and CUDA graphs, the most important first. Each part is a command of
its own with a time limit, and ends with all that it has started. A call ends within 390 seconds: a
part that does not fit into what is left of it is not begun. What is done is marked in the folder:
the same command goes on from there, what has failed comes last. Needs torch, triton, the built
extension and pytest, of which pytest-xdist runs several tests at a time; peers that are not
installed are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.command import ROOT, BadInput, Row, add_json_option, check_target, show
from bench.device.ledger import CUT_OFF, DONE, FAILED, STALE, Ledger
from bench.device.parts import ONE_THREAD, PYTHON, TIME_FOR_PARTS, Part, calls, parts, rehearsal
from bench.device.processes import run_limited
from bench.output import table
from bench.output.files import ResultFile, read
from bench.report import page
from soap_fast import extension

COLUMNS = ("part", "call", "limit_s", "status", "seconds", "message")
INTERRUPTED = 130  # what a shell expects after Ctrl-C
PRINTED = 60  # lines of what a part has printed, at most, in the report
TOY = {
    "model": "toy",
    "params": [{"name": "weight", "shape": [6, 4, 3, 3]}, {"name": "bias", "shape": [6]}],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", metavar="DIR", help="default: bench/results/ and the name of the GPU")
    add("--only", nargs="+", metavar="PART", help="these parts, also where they are done")
    add("--dry-run", action="store_true", help="list the parts, their limits and what is done")
    add_json_option(parser)  # of the list
    add("--rehearse", action="store_true", help="small parts on the CPU, to see that all works")


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    chosen = rehearsal() if options.rehearse else parts()
    names = [part.name for part in chosen]
    if unknown := [name for name in options.only or () if name not in names]:
        raise BadInput(f"no part {unknown[0]!r}: take {', '.join(names)}")
    if not (options.dry_run or options.rehearse):
        _check_machine()
    if options.dry_run and options.out is None:
        show(_states(chosen, None), COLUMNS, options.json)
        return 0
    folder = Path(options.out) if options.out else ROOT / "bench" / "results" / _slug()
    ledger = Ledger(folder.absolute())
    if options.dry_run:
        show(_states(chosen, ledger), COLUMNS, options.json)
        return 0
    if stale := [part.name for part in chosen if ledger.status(part) == STALE]:
        print(f"{STALE}, taken anew: {', '.join(stale)}", file=sys.stderr)
    wanted = [part for part in chosen if part.name in options.only] if options.only else None
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part as well
    try:
        threads = ONE_THREAD if options.rehearse else {}
        _take(wanted or ledger.left(chosen), folder.absolute(), ledger, threads)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        write_report(folder, chosen, ledger)
    show(_states(chosen, ledger), COLUMNS, options.json)
    print(folder / page.PAGE, file=sys.stderr if options.json == "-" else sys.stdout)
    return int(any(ledger.status(part) != DONE for part in chosen))


def _check_machine() -> None:
    """One line that says what is missing, and how to get it."""
    if not torch.cuda.is_available():
        raise BadInput(
            "torch sees no NVIDIA GPU: run this on a machine with one; --dry-run lists what it "
            "does, --rehearse tries it on the CPU"
        )
    for name in ("triton", "pytest"):
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"{name} is not installed: pip install {name}")
    if not extension.available():
        raise BadInput(f"the extension is missing: {extension.reason()}")
    if not (extension.build_info() or {}).get("cuda"):
        raise BadInput("the extension was built without CUDA: SOAP_FAST_CUDA=ON pip install .")


def _slug() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "rehearsal"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _take(left: list[Part], folder: Path, ledger: Ledger, environment: Mapping[str, str]) -> None:
    """Part after part; what does not fit into what is left of this call waits for the next."""
    toy = folder / "toy.json"
    if any("{toy}" in part.command for part in left):
        toy.write_text(json.dumps(TOY))
    end, waiting = time.monotonic() + TIME_FOR_PARTS, []
    for number, part in enumerate(left, 1):
        if number > 1 and part.limit > end - time.monotonic():
            waiting.append(part.name)
            continue
        print(f"{number}/{len(left)} {part.name}, at most {part.limit:g} s", file=sys.stderr)
        ledger.record(part, **_outcome(part, folder, toy, environment))
    if waiting:
        names = ", ".join(waiting)
        print(f"for the next call, the same command goes on: {names}", file=sys.stderr)


def _outcome(part: Part, folder: Path, toy: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a part; its result gets its name only once it is whole."""
    new, result = folder / f"{part.name}.json.new", folder / f"{part.name}.json"
    out, err = folder / f"{part.name}.txt", folder / f"{part.name}.err"
    new.unlink(missing_ok=True)
    paths = {PYTHON: sys.executable, "{out}": str(new), "{toy}": str(toy)}
    command = [paths.get(word, word) for word in part.command]
    start = time.monotonic()
    try:
        code = run_limited(command, part.limit, out, err, environment)
    except OSError as error:  # the command cannot be started
        return {"status": FAILED, "seconds": 0.0, "message": str(error)}
    seconds = round(time.monotonic() - start, 1)
    if code is None:
        message = f"took longer than {part.limit:g} s"
        return {"status": CUT_OFF, "seconds": seconds, "message": message}
    if code != 0 or ("{out}" in part.command and not new.exists()):
        message = f"exit code {code}: {_last_line(err) or _last_line(out)}"
        return {"status": FAILED, "seconds": seconds, "message": message}
    done = {"status": DONE, "seconds": seconds, "message": None}
    if new.exists():
        os.replace(new, result)
        return done
    return {**done, "result": _result(out)}


def _result(printed: Path) -> Any:
    """Of a part that writes no file: the JSON that it printed, else its last line."""
    try:
        return json.loads(printed.read_text(errors="replace"))
    except ValueError:
        return _last_line(printed)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _states(chosen: list[Part], ledger: Ledger | None) -> list[Row]:
    """A row per part, with the call from now on that begins it at the latest; and one for all."""
    left = chosen if ledger is None else ledger.left(chosen)
    planned = {part.name: n for n, of in enumerate(calls(left), 1) for part in of}
    rows: list[Row] = []
    for part in chosen:
        status = None if ledger is None else ledger.status(part)
        entry = {} if ledger is None or status is None else ledger.entries[part.name]
        row: Row = {"part": part.name, "call": planned.get(part.name), "limit_s": part.limit}
        row["status"] = status or "not run"
        rows.append(row | {name: entry.get(name) for name in ("seconds", "message")})
    return [*rows, {"part": "all", "limit_s": sum(part.limit for part in chosen)}]


def _listing(chosen: list[Part], ledger: Ledger) -> str:
    rows = _states(chosen, ledger)
    return table.text(COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows])


def write_report(folder: Path, chosen: list[Part], ledger: Ledger) -> None:
    """The page of the results, before it what became of each part, after it what others printed."""
    facts = ", ".join(f"{name} {value}" for name, value in ledger.machine.items() if value)
    before = f"# {facts}\n\n```\n{_listing(chosen, ledger)}\n```\n"
    known = page.sorted_out(_results(folder, chosen, ledger))
    told = {file.path for _, file in known}
    page.write(known, folder, before, _printed(folder, chosen, ledger, told))


def _results(folder: Path, chosen: list[Part], ledger: Ledger) -> Iterator[ResultFile]:
    """Of parts that are done, by their names in the folder: a page has no paths of a machine."""
    for part in chosen:
        path = folder / f"{part.name}.json"
        if ledger.status(part) == DONE and path.exists():
            try:
                yield replace(read(str(path)), path=path.name)
            except BadInput as problem:
                print(f"{problem}; left out", file=sys.stderr)


def _printed(folder: Path, chosen: list[Part], ledger: Ledger, told: Container[str]) -> str:
    """What parts printed of which the page has no result: the tests, and what has failed."""
    sections = []
    for part in chosen:
        path = folder / f"{part.name}.txt"
        if f"{part.name}.json" in told or ledger.status(part) is None or not path.exists():
            continue
        lines = path.read_text(errors="replace").rstrip().splitlines()
        left_out = [f"[{len(lines) - PRINTED} lines more in {path.name}]"]
        text = "\n".join(lines if len(lines) <= PRINTED else left_out + lines[-PRINTED:])
        sections.append(f"## {part.name}\n\n`{' '.join(part.command)}`\n\n```\n{text}\n```\n")
    return "\n".join(sections)
