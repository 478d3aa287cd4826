"""Files that are whole or as they were, names that can be printed, and errors in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what, and what to do instead."""


class CannotWrite(Exception):
    """A full disk, for instance; the message names the file and the reason."""


def told(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around all that writes `path`: CannotWrite in place of OSError."""
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


def write_text(path: Path, text: str) -> None:
    """As UTF-8, whatever the locale; CannotWrite where the disk is full, for instance."""
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def readable(name: str) -> str:
    r"""The name of a file, with \x.. for bytes that are no UTF-8, and for what cannot be printed.

    Where the locale knows ASCII only, Python hands out all other bytes of a name as surrogates:
    here they become the characters that they are.
    """
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as names on Windows may hold
        text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
