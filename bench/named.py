"""Objects of the user's that a command line names `package.module:object`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from bench.command import told


def named(text: str) -> Any:
    """What `package.module:object` names; modules in the current folder are found as well.

    Raises:
        argparse.ArgumentTypeError: there is no such thing, in one line.
    """
    module, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise argparse.ArgumentTypeError(f"cannot take {text!r} ({told(error)})") from None
    return found
