"""The check in a process of its own, with a time limit.

A kernel that reads where it must not takes the CUDA context of its process along, and one that
waits for what never comes does not return: neither may happen to the user's process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from soap_fast.self_check.problem import TOLERANCE
from soap_fast.self_check.verdict import Verdict

LIMIT = 120.0  # seconds, most of which would be compiling on a busy machine
# What CUDA says where it admits no second process, or has no memory left for one.
UNAVAILABLE = ("busy or unavailable", "out of memory", "ALLOC_FAILED")
FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
FAULTS_ON_THE_DEVICE = ("illegal memory access", "illegal instruction", "misaligned address")
# The same modules as here, wherever this process found them.
CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from soap_fast.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def command(arguments: Sequence[str]) -> list[str]:
    """Runs `python -m soap_fast` with these arguments."""
    paths = [path or os.getcwd() for path in sys.path]
    return [sys.executable, "-c", CODE, json.dumps(paths), *arguments]


def check_isolated(arguments: Sequence[str], limit: float = LIMIT) -> Verdict | None:
    """The verdict of a process that prints its largest error as JSON.

    Args:
        arguments: of `python -m soap_fast`.
        limit: seconds, after which it is ended.

    Returns:
        None where there can be no second process: the device admits none, has no memory left for
        it, or Python cannot be started.
    """
    if not sys.executable or getattr(sys, "frozen", False):  # it would start the program again
        return None
    environment = {**os.environ, "SOAP_FAST_SELF_CHECK": "off"}
    try:
        process = subprocess.Popen(
            command(arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a compiler it has started ends with it
        )
    except OSError:
        return None
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return Verdict(None, TOLERANCE, f"took longer than {limit:.0f} s")
    except BaseException:
        _end(process)
        raise
    try:
        return Verdict(float(json.loads(out.splitlines()[-1])["error"]), TOLERANCE)
    except (ValueError, LookupError, TypeError):
        if any(words in err for words in UNAVAILABLE):
            return None
        said = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")
        ended = f"ended with code {process.returncode}"
        number = max(-process.returncode, 0)
        if number:
            ended = f"was ended by {signal.Signals(number).name}"
        crashed = number in FAULTS or any(words in err for words in FAULTS_ON_THE_DEVICE)
        return Verdict(None, TOLERANCE, f"its process {ended}: {said}", crashed)


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
