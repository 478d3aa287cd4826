"""Files that are whole or as they were, and what is said where one cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class CannotWrite(Exception):
    """A full disk, for instance; the message names the file and the reason."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around all that writes `path`.

    Raises:
        CannotWrite: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "; free some space, or take another place" if full else ""
        raise CannotWrite(f"cannot write {path}: {reason}{way_out}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file beside `path` to write, which then takes its place in one step.

    Where it cannot be written nothing is left of it: it would keep a full disk full.

    Raises:
        CannotWrite: in place of OSError.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
